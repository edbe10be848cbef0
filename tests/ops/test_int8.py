"""The integer operators: exact against plain loops, on every implementation."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch

import torchadder
from int8_problems import PROBLEMS, operands, plain_sums, random_bytes, random_requantisation
from torchadder.ops import int8
from torchadder.ops.geometry import make_geometry
from torchadder.ops.int8 import cpu, packing, reference

ops = torch.ops.torchadder


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize(("kind", "zero_point"), [("adder2d", 0), ("adder2d", 131), ("conv2d", 9)])
def test_sums_are_exact(problem, kind, zero_point):
    x, w, window = operands(problem, kind)
    layer = getattr(ops, f"{kind}_int8")
    want = plain_sums(x, w, zero_point, *window)
    packed = int8.pack(w, window[2], window[3])
    got = layer(x, packed, w.shape, zero_point, *window)
    assert got.dtype == torch.int32
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(got.long(), want)
    assert torch.equal(got, reference.layer(kind, x, w, zero_point, make_geometry(*window)))
    moved = x.contiguous()  # NCHW gives the same
    assert torch.equal(layer(moved, packed, w.shape, zero_point, *window), got)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("kind", ["adder2d", "conv2d"])
@pytest.mark.parametrize("with_residual", [False, True])
def test_requantised_bytes_are_exact(problem, kind, with_residual):
    x, w, window = operands(problem, kind)
    sums = plain_sums(x, w, 7, *window)
    how, want = random_requantisation(sums, with_residual)
    packed = int8.pack(w, window[2], window[3])
    got = getattr(ops, f"{kind}_int8_requantised")(x, packed, w.shape, 7, *window, *how)
    assert got.dtype == torch.uint8
    assert torch.equal(got.long(), want)
    plain = reference.layer(kind, x, w, 7, make_geometry(*window))
    assert torch.equal(reference.requantise(plain, *how), got)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_packing_is_that_of_the_c_interface_and_can_be_undone(problem):
    x, w, window = operands(problem)
    _, _, dilation, groups = window
    packed = int8.pack(w, dilation, groups)
    assert torch.equal(packing.unpack(packed, tuple(w.shape), dilation[1], groups), w)
    assert packing.packed_size(tuple(w.shape), dilation[1], groups) == packed.numel()
    handle = cpu.library()
    if handle is None:
        pytest.skip("the compiled kernels are not loaded")
    layer_alone = ((0, x.shape[1], 0, 0), tuple(w.shape), (0, 0, 0, 0), make_geometry(*window))
    c_problem = cpu._problem(*layer_alone)
    handle.ta_int8_packed_size.restype = ctypes.c_int64
    assert handle.ta_int8_packed_size(ctypes.byref(c_problem)) == packed.numel()
    other = torch.empty_like(packed)
    handle.ta_int8_pack.restype = None
    handle.ta_int8_pack(
        ctypes.byref(c_problem), ctypes.c_void_p(w.data_ptr()), ctypes.c_void_p(other.data_ptr())
    )
    assert torch.equal(other, packed)


@pytest.mark.parametrize("kind", ["adder2d", "conv2d"])
def test_filters_that_are_every_second_byte(kind):
    x, w, window = operands(PROBLEMS[0], kind)
    packed = int8.pack(w)
    apart = torch.stack([packed, ~packed], dim=1).flatten()[::2]
    want = plain_sums(x, w, 5, *window)
    how, want_bytes = random_requantisation(want, with_residual=True)
    got = getattr(ops, f"{kind}_int8")(x, apart, w.shape, 5, *window)
    assert torch.equal(got.long(), want)
    got = getattr(ops, f"{kind}_int8_requantised")(x, apart, w.shape, 5, *window, *how)
    assert torch.equal(got.long(), want_bytes)


@pytest.mark.parametrize(
    ("kind", "taps", "pixel", "filter", "term"),
    [
        ("adder2d", 2**23, 0, 255, -255),
        ("conv2d", 2**16, 255, -128, -255 * 128),
        ("conv2d", 2**16, 255, 127, 255 * 127),
    ],
)
def test_the_largest_sums_fit(kind, taps, pixel, filter, term):
    dtype = torch.uint8 if kind == "adder2d" else torch.int8
    x = torch.full((1, taps, 1, 1), pixel, dtype=torch.uint8)
    w = torch.full((1, taps, 1, 1), filter, dtype=dtype)
    window = ((1, 1), (0, 0), (1, 1), 1)
    layer = getattr(ops, f"{kind}_int8")
    assert layer(x, int8.pack(w), w.shape, 0, *window).item() == term * taps
    longer = torch.zeros(1, taps + 1, 1, 1, dtype=dtype)
    with pytest.raises(ValueError, match=f"at most {taps} fit 32 bits"):
        layer(torch.zeros_like(longer, dtype=torch.uint8), int8.pack(longer), longer.shape, 0,
              *window)  # fmt: skip


def in_a_process_of_its_own(**environment):
    """Name of the implementation and a hash of what it computes."""
    code = (
        "import torch, torchadder\n"
        "from torchadder.ops import int8\n"
        "torch.manual_seed(0)\n"
        "w = torch.randint(0, 256, (37, 19, 3, 3), dtype=torch.uint8)\n"
        "x = torch.randint(0, 256, (2, 19, 11, 9), dtype=torch.uint8)\n"
        "window = ((1, 1), (1, 1), (1, 1), 1)\n"
        "v = w.view(torch.int8)\n"
        "how = (torch.arange(-9, 28, dtype=torch.int32), torch.arange(37) << 9, 8, 3, 250)\n"
        "how = (*how, torch.randint(0, 256, (2, 37, 11, 9), dtype=torch.uint8), -77)\n"
        "ops = torch.ops.torchadder\n"
        "ys = [ops.adder2d_int8(x, int8.pack(w), w.shape, 9, *window),\n"
        "      ops.conv2d_int8(x, int8.pack(v), w.shape, 9, *window),\n"
        "      ops.adder2d_int8_requantised(x, int8.pack(w), w.shape, 9, *window, *how),\n"
        "      ops.conv2d_int8_requantised(x, int8.pack(v), w.shape, 9, *window, *how),\n"
        "      ops.max_pool2d_int8(x, (3, 2), (2, 1), (1, 0), (1, 1))]\n"
        "print(torchadder.ops.cpu_library_info()['instruction_set'])\n"
        "print(hash(tuple(n for y in ys for n in y.flatten().tolist())))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.split()


@pytest.fixture(scope="module")
def by_default():
    return in_a_process_of_its_own()[1]


@pytest.mark.parametrize("capability", ["avx2", "portable"])
def test_every_instruction_set_gives_the_same(by_default, capability):
    used, got = in_a_process_of_its_own(TORCHADDER_CPU_CAPABILITY=capability)
    assert used in (capability, "portable", "torch")
    assert got == by_default


@pytest.mark.parametrize("kind", ["adder2d", "conv2d"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_results_do_not_depend_on_the_number_of_threads(threads, kind):
    x, w, window = operands(PROBLEMS[0], kind)
    packed = int8.pack(w)
    want = plain_sums(x, w, 5, *window)
    how, want_bytes = random_requantisation(want, with_residual=True)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        got = getattr(ops, f"{kind}_int8")(x, packed, w.shape, 5, *window)
        requantised = getattr(ops, f"{kind}_int8_requantised")
        got_bytes = requantised(x, packed, w.shape, 5, *window, *how)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(got.long(), want)
    assert torch.equal(got_bytes.long(), want_bytes)


# (N, C, H, W), kernel, stride, padding, dilation
POOLS = [
    ((2, 64, 21, 20), (3, 3), (2, 2), (1, 1), (1, 1)),
    ((1, 5, 7, 9), (2, 3), (1, 2), (1, 0), (1, 1)),
    ((1, 33, 9, 6), (2, 2), (2, 1), (0, 1), (3, 2)),
    ((0, 3, 4, 4), (2, 2), (2, 2), (0, 0), (1, 1)),
]


@pytest.mark.parametrize(("shape", "kernel", "stride", "padding", "dilation"), POOLS)
def test_pools_are_exact(shape, kernel, stride, padding, dilation):
    x = random_bytes(*shape)
    want = torch.nn.functional.max_pool2d(x.double(), kernel, stride, padding, dilation)
    got = ops.max_pool2d_int8(x, kernel, stride, padding, dilation)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(got.double(), want)
    wide = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(ops.max_pool2d_int8(wide, kernel, stride, padding, dilation), got)
    if len(x):
        torch.library.opcheck(ops.max_pool2d_int8.default, (x, kernel, stride, padding, dilation))


@pytest.mark.parametrize(
    ("x", "padding", "error", "message"),
    [
        (torch.zeros(1, 1, 4, 4), 0, TypeError, "input must be uint8"),
        (torch.zeros(4, 4, dtype=torch.uint8), 0, ValueError, "4 dimensions"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.uint8), 2, ValueError, "at most half"),
        (torch.zeros(1, 1, 1, 1, dtype=torch.uint8), 0, ValueError, "smaller than the window"),
    ],
)
def test_bad_pools_are_refused(x, padding, error, message):
    with pytest.raises(error, match=message):
        ops.max_pool2d_int8(x, (2, 2), (2, 2), (padding, padding), (1, 1))


def call(x, w, **changes):
    arguments = {
        "packed": int8.pack(w) if w.dtype == torch.uint8 else w.flatten(),
        "kernel": tuple(w.shape),
        "zero_point": 0,
        "stride": (1, 1),
        "padding": (0, 0),
        "dilation": (1, 1),
        "groups": 1,
    } | changes
    return ops.adder2d_int8(x, *arguments.values())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"zero_point": 256}, ValueError, r"zero_point must be within 0 .. 255, got 256"),
        ({"groups": 3}, ValueError, r"input must have 4 \* 3 channels"),
        ({"kernel": (2, 4, 3)}, (ValueError, RuntimeError), "kernel"),
        ({"kernel": (3, 4, 3, 9)}, ValueError, r"packed must hold \d+ bytes"),
        ({"packed": torch.zeros(5, dtype=torch.uint8)}, ValueError, r"packed must hold \d+ bytes"),
        ({"packed": torch.zeros(5)}, TypeError, "packed must be uint8"),
        ({"dilation": (9, 1)}, ValueError, "smaller than the window"),
        ({"stride": (0, 1)}, ValueError, "stride must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        call(random_bytes(1, 4, 6, 6), random_bytes(3, 4, 3, 3), **changes)


def test_floats_are_refused():
    with pytest.raises(TypeError, match=r"input must be uint8, got torch.float32"):
        call(torch.zeros(1, 4, 6, 6), random_bytes(3, 4, 3, 3))
    with pytest.raises(TypeError, match="weight must be uint8 or int8"):
        int8.pack(torch.zeros(3, 4, 3, 3))
    with pytest.raises(ValueError, match=r"weight must have shape"):
        int8.pack(random_bytes(3, 4))
    with pytest.raises(ValueError, match=r"must be divisible by groups"):
        int8.pack(random_bytes(3, 4, 1, 1), groups=2)


def test_bad_requantisations_are_refused():
    x, w, window = operands(PROBLEMS[0])
    good = {
        "multiplier": torch.ones(32, dtype=torch.int32),
        "offset": torch.zeros(32, dtype=torch.int64),
        "shift": 0,
        "low": 0,
        "high": 255,
        "residual": None,
        "residual_multiplier": 0,
    }

    def run(**changes):
        how = (good | changes).values()
        return ops.adder2d_int8_requantised(x, int8.pack(w), w.shape, 0, *window, *how)

    y = run().shape
    for changes, error, message in (
        ({"multiplier": torch.ones(32)}, TypeError, "multiplier must be torch.int32"),
        ({"offset": torch.zeros(3, dtype=torch.int64)}, ValueError, r"offset must have shape"),
        ({"shift": 63}, ValueError, "shift must be within 0 .. 62"),
        ({"low": 9, "high": 8}, ValueError, "low <= high"),
        ({"residual": torch.zeros(1)}, TypeError, "residual must be uint8"),
        ({"residual": random_bytes(1, 1, 1, 1)}, ValueError, "residual must have shape"),
        ({"residual_multiplier": 2**31}, ValueError, r"within -2\^31 .. 2\^31 - 1, got 2147483648"),
        ({"residual_multiplier": -(2**31) - 1}, ValueError, "residual_multiplier must be within"),
        ({"multiplier": good["multiplier"].to("meta")}, ValueError, "multiplier must be on cpu"),
        ({"offset": good["offset"].to("meta")}, ValueError, "offset must be on cpu, got meta"),
        ({"residual": random_bytes(*y).to("meta")}, ValueError, "residual must be on cpu"),
    ):
        with pytest.raises(error, match=message):
            run(**changes)


def test_operators_are_registered_completely():
    x, w, window = operands(PROBLEMS[0])
    operands_ = (x, int8.pack(w), tuple(w.shape), 3, *window)
    torch.library.opcheck(ops.adder2d_int8.default, operands_)
    how = (
        torch.ones(32, dtype=torch.int32),
        torch.zeros(32, dtype=torch.int64),
        3,
        0,
        255,
        None,
        0,
    )
    torch.library.opcheck(ops.adder2d_int8_requantised.default, (*operands_, *how))


def test_compiles_as_one_graph():
    x, w, window = operands(PROBLEMS[0])
    packed = int8.pack(w)

    def layer(x):
        return ops.adder2d_int8(x, packed, w.shape, 3, *window) + 1

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), layer(x))
    torch._dynamo.reset()
    assert torchadder.ops.int8 is int8
