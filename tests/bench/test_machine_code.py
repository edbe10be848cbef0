"""The GPU kernels as machine code, compiled here for chips that are elsewhere."""

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")

from triton.backends.compiler import GPUTarget  # noqa: E402

from torchadder.bench import machine_code  # noqa: E402
from torchadder.ops.triton import tiles  # noqa: E402
from torchadder.ops.triton.backward_input import LARGEST, adder2d_backward_input  # noqa: E402
from torchadder.ops.triton.forward import adder2d_forward  # noqa: E402
from torchadder.ops.triton.int8 import adder2d_int8  # noqa: E402

HOPPER = GPUTarget("cuda", 90, 32)


def loop_of(kernel, words):
    loops = list(machine_code.innermost_loops(machine_code.disassemble(kernel)))
    return max(loops, key=lambda loop: min(loop[word] for word in words))


def test_forward_takes_two_instructions_a_pair():
    tile = tiles.Tile(4, 2, 16, 8)
    constants = machine_code.constants(16, tile) | {"HAS_BIAS": False, "BLOCK_SUMS": False}
    kernel = machine_code.compiled(adder2d_forward, constants, "fp32", HOPPER, tile)
    loop = loop_of(kernel, ("FADD",))
    # 8 terms of 4 x 2 results; operands arrive by pairs, straight into registers
    assert loop["FADD"] == 2 * 8 * 8
    assert sum(n for word, n in loop.items() if word.startswith("LDG")) == 8 // 2 * (4 + 2)
    assert not any(word.startswith(("LDS", "STS", "BAR", "LDL", "STL")) for word in loop)


def test_clipped_gradient_takes_two_instructions_a_pair():
    tile = tiles.Tile(4, 2, 16, 8)
    constants = machine_code.constants(16, tile) | {
        "LARGEST_X": LARGEST["clip"], "RULE": "clip", "BLOCKS": 16,
    }  # fmt: skip
    kernel = machine_code.compiled(adder2d_backward_input, constants, "fp32", HOPPER, tile)
    loop = loop_of(kernel, ("FADD.SAT", "FFMA"))
    assert loop["FADD.SAT"] == loop["FFMA"] == 8 * 8
    assert not any(word.startswith(("LDS", "STS", "BAR", "LDL", "STL")) for word in loop)


def of_bytes(tile, *, ptx):
    constants = machine_code.constants(16, tile) | {"REQUANTISE": True, "HAS_RESIDUAL": True}
    return constants | {"PTX": ptx, "UNROLL": 2}


@pytest.mark.parametrize("capability", [75, 90])
def test_bytes_take_an_instruction_for_four_pairs(capability):
    tile = tiles.Tile(4, 2, 16, 8)
    target = GPUTarget("cuda", capability, 32)
    kernel = machine_code.compiled(adder2d_int8, of_bytes(tile, ptx=True), "u8", target, tile)
    loop = loop_of(kernel, ("VABSDIFF4.U8.ACC",))
    # 16 terms of 4 x 2 results; operands arrive by eights, straight into registers
    assert loop["VABSDIFF4.U8.ACC"] % (16 // 4 * 8) == 0
    taps = loop["VABSDIFF4.U8.ACC"] // (16 // 4 * 8)
    assert sum(n for word, n in loop.items() if word.startswith("LDG")) == taps * 2 * (4 + 2)
    assert not any(word.startswith(("LDS", "STS", "BAR", "LDL", "STL")) for word in loop)


def test_bytes_compile_for_amd():
    tile = tiles.Tile(4, 2, 16, 8)
    target = GPUTarget("hip", "gfx942", 64)
    kernel = machine_code.compiled(adder2d_int8, of_bytes(tile, ptx=False), "u8", target, tile)
    assert kernel.asm["hsaco"]


@pytest.mark.parametrize("target", [("cuda", 75, 32), ("cuda", 80, 32), ("hip", "gfx942", 64)])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_kernels_compile_for_other_chips(target, dtype):
    tile = tiles.Tile(4, 4, 16, 16)
    constants = machine_code.constants(24, tile) | {"HAS_BIAS": True, "BLOCK_SUMS": True}
    target = GPUTarget(*target)
    kernel = machine_code.compiled(adder2d_forward, constants, dtype, target, tile)
    assert kernel.asm["cubin" if target.backend == "cuda" else "hsaco"]


@pytest.mark.parametrize("tile", tiles.TILES, ids=str)
def test_slices_of_operands_are_shorter_than_the_number_of_threads(tile):
    """What makes Triton read operands where they are used, see the kernels' README."""
    assert tile.rows * tile.threads_m < tile.threads
    assert tile.columns * tile.threads_n < tile.threads
    assert tile.threads % 64 == 0


@pytest.mark.slow
def test_command_prints_a_row_a_kernel(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["machine_code", "--json", str(tmp_path / "out.json")])
    machine_code.main()
    assert capsys.readouterr().out.count("| forward |") == len(machine_code.CHANNELS)
    assert '"capability": 90' in (tmp_path / "out.json").read_text()
