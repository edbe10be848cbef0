"""What the compiler makes of the kernels' loops, without a GPU.

python -m torchadder.bench.machine_code [--capability 90] [--json FILE]

Compiles the kernels for an NVIDIA chip, disassembles them with the tools that Triton's package
carries, and counts the instructions of the innermost loops: those that do the arithmetic (two a
pair are the least), and all others, which take issue slots away from it. A share, not a speed.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from torchadder.ops.triton import tiles
from torchadder.ops.triton.backward_input import LARGEST, adder2d_backward_input
from torchadder.ops.triton.forward import adder2d_forward
from torchadder.ops.triton.int8 import adder2d_int8
from torchadder.provenance import provenance

ARITHMETIC = {
    "forward": ("FADD",),
    "input gradient, clip": ("FADD.SAT", "FFMA"),
    "input gradient, l2": ("FADD", "FFMA"),
    "input gradient, sign": ("FADD", "FMUL", "FFMA.SAT", "FFMA"),
}
CHANNELS = (16, 32, 64, 128, 256)
_POINTERS = ("input", "grad_output", "grad_input", "output")
_FLOAT_POINTERS = ("weight", "zeros", "bias", "grad_sums")
_INT8_POINTERS = {
    "packed": "u8", "nowhere": "u8", "residual": "u8", "multiplier": "i32", "offset": "i64",
}  # fmt: skip
_MULTIPROCESSORS = 132


def compiled(
    kernel: Any, constants: dict[str, Any], dtype: str, target: GPUTarget, tile: tiles.Tile
):
    """``kernel`` compiled for ``target`` with the given constants and images of ``dtype``."""
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in _POINTERS:
            signature[name] = f"*{dtype}"
        elif name in _FLOAT_POINTERS:
            signature[name] = "*fp32"
        elif name in _INT8_POINTERS:
            signature[name] = f"*{_INT8_POINTERS[name]}"
        else:
            signature[name] = "*i32" if name == "has_nan" else "i32"
    # Tensors start at multiples of 16 bytes.
    aligned: dict[Any, Any] = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(
        source, target=target, options={"num_warps": tile.threads // target.warp_size}
    )


def constants(channels: int, tile: tiles.Tile) -> dict[str, Any]:
    """What both kernels are specialised on, for a 3x3 layer."""
    return {
        "C": channels, "O": channels, "R": 3, "S": 3, "WIDE": False,
        "UNROLL": tiles.stretch(channels), "ROWS": tile.rows, "COLUMNS": tile.columns,
        "THREADS_M": tile.threads_m, "THREADS_N": tile.threads_n,
    }  # fmt: skip


def problems(dtype: str, target: GPUTarget) -> Iterator[tuple[str, int, tiles.Tile, Any]]:
    """(kernel, channels, tile, compiled) of 3x3 layers with as many filters as channels."""
    for channels in CHANNELS:
        problem = (2**17, channels, 9 * channels, 1, _MULTIPROCESSORS)
        tile = tiles.choose(*problem)
        forward = constants(channels, tile) | {"HAS_BIAS": False, "BLOCK_SUMS": False}
        yield "forward", channels, tile, compiled(adder2d_forward, forward, dtype, target, tile)
        tile = tiles.choose(*problem, tiles.GRADIENT_TILES)
        for rule in ("clip", "l2", "sign"):
            backward = constants(channels, tile) | {
                "LARGEST_X": LARGEST[rule], "RULE": rule, "BLOCKS": 16
            }  # fmt: skip
            kernel = compiled(adder2d_backward_input, backward, dtype, target, tile)
            yield f"input gradient, {rule}", channels, tile, kernel


def _tool(name: str, kernel: Any, *options: str) -> str:
    """What a tool of Triton's package says of the compiled kernel."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [tool, *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def num_registers(kernel: Any) -> int:
    """Registers a thread."""
    found = re.search(r"REG:(\d+)", _tool("cuobjdump", kernel, "--dump-resource-usage"))
    assert found
    return int(found[1])


def disassemble(kernel: Any) -> list[str]:
    """Lines of machine code: instructions, and labels ending in a colon."""
    lines = []
    for line in _tool("nvdisasm", kernel, "-c").splitlines():
        label = re.match(r"\s*(\.L_x_\d+:)", line)
        instruction = re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);", line)
        if found := label or instruction:
            lines.append(found[1])
    return lines


def innermost_loops(lines: list[str]) -> Iterator[collections.Counter[str]]:
    """How often each instruction occurs in every loop that holds no other."""
    starts = {line[:-1]: i for i, line in enumerate(lines) if line.endswith(":")}
    spans = []
    for i, line in enumerate(lines):
        jump = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
        if jump and starts.get(jump[1], i) < i - 1:
            spans.append((starts[jump[1]], i))
    for first, last in spans:
        if not any(first <= a and b < last for a, b in spans if (a, b) != (first, last)):
            body = (line for line in lines[first : last + 1] if not line.endswith(":"))
            words = (re.sub(r"^@!?U?P\w+\s+", "", line).split()[0] for line in body)
            yield collections.Counter(words)


def inspect(dtype: str = "fp32", capability: int = 90) -> list[dict[str, Any]]:
    """One row a kernel and number of channels, for the loop that serves ordinary numbers."""
    rows = []
    for name, channels, tile, kernel in problems(dtype, GPUTarget("cuda", capability, 32)):
        lines = disassemble(kernel)
        # The long way of the input gradient clamps with minima.
        loops = [c for c in innermost_loops(lines) if not any("FMNMX" in i for i in c)]
        wanted = ARITHMETIC[name]
        loop = max(loops, key=lambda c: min(c[word] for word in wanted))
        arithmetic = sum(loop[word] for word in wanted)
        # Two terms of a row or column a load; the compiler may have unrolled the loop further.
        loads = sum(count for word, count in loop.items() if word.startswith("LDG"))
        pairs = tile.rows * tile.columns * 2 * loads // (tile.rows + tile.columns)
        rows.append(
            {
                "kernel": name,
                "channels": channels,
                "tile": f"{tile.block_m}x{tile.block_n}",
                "threads": tile.threads,
                "pairs": pairs,
                "arithmetic_per_pair": arithmetic / pairs,
                "instructions_per_pair": sum(loop.values()) / pairs,
                "least_share": 2 * pairs / sum(loop.values()),
                "registers": num_registers(kernel),
                "spills": sum(line.startswith(("STL", "LDL")) for line in lines),
                "loop": dict(loop.most_common()),
            }
        )
    return rows


def inspect_int8(capability: int = 90) -> list[dict[str, Any]]:
    """Likewise for the layers of bytes: one row a number of channels.

    One instruction takes four pairs, so a quarter a pair is the least.
    """
    rows = []
    target = GPUTarget("cuda", capability, 32)
    for channels in CHANNELS:
        tile = tiles.choose(2**17, channels, 9 * channels, 1, _MULTIPROCESSORS)
        of_layer = constants(channels, tile) | {
            "REQUANTISE": True, "HAS_RESIDUAL": True, "PTX": True,
            "UNROLL": min(4, tiles.stretch(channels // 8)),
        }  # fmt: skip
        kernel = compiled(adder2d_int8, of_layer, "u8", target, tile)
        lines = disassemble(kernel)
        loop = max(innermost_loops(lines), key=lambda c: c["VABSDIFF4.U8.ACC"])
        loads = sum(count for word, count in loop.items() if word.startswith("LDG"))
        # Eight terms of a row or column a load.
        pairs = tile.rows * tile.columns * 8 * loads // (tile.rows + tile.columns)
        arithmetic = loop["VABSDIFF4.U8.ACC"]
        rows.append(
            {
                "kernel": "int8 forward",
                "channels": channels,
                "tile": f"{tile.block_m}x{tile.block_n}",
                "threads": tile.threads,
                "pairs": pairs,
                "arithmetic_per_pair": arithmetic / pairs,
                "instructions_per_pair": sum(loop.values()) / pairs,
                "least_share": pairs / 4 / sum(loop.values()),
                "registers": num_registers(kernel),
                "spills": sum(line.startswith(("STL", "LDL")) for line in lines),
                "loop": dict(loop.most_common()),
            }
        )
    return rows


def main() -> None:
    """Print the table, write the JSON."""
    parser = argparse.ArgumentParser(description="Count the instructions of the GPU kernels.")
    parser.add_argument("--capability", type=int, default=90, help="of the chip, 90 for Hopper")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16", "fp16", "int8"))
    parser.add_argument("--json", help="file to write")
    arguments = parser.parse_args()
    int8 = arguments.dtype == "int8"
    rows = (
        inspect_int8(arguments.capability)
        if int8
        else inspect(arguments.dtype, arguments.capability)
    )
    print(
        "| kernel | channels | tile | arithmetic a pair | instructions | "
        f"{'1/4' if int8 else 2} a pair are | registers |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['kernel']} | {row['channels']} | {row['tile']} | "
            f"{row['arithmetic_per_pair']:.2f} | {row['instructions_per_pair']:.2f} | "
            f"{row['least_share']:.0%} | {row['registers']} |"
        )
    if arguments.json:
        command = " ".join(["python -m torchadder.bench.machine_code", *sys.argv[1:]])
        report = provenance(command) | {
            "triton": triton.__version__,
            "capability": arguments.capability,
            "dtype": arguments.dtype,
            "loops": rows,
        }
        Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
