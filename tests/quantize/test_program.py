"""Programs as data, and the reference interpreter against hand-computed numbers and plain loops."""

import dataclasses
import itertools
import json
from fractions import Fraction

import pytest
import torch

from small_programs import every_step, layer, program, random_images, scaled
from torchadder.quantize import IntegerNet, interpreter
from torchadder.quantize.program import (
    Add,
    AvgPool,
    Concat,
    Flatten,
    FloatLayer,
    GroupNorm,
    Layer,
    MaxPool,
    Output,
    Program,
    Requantisation,
    Upsample,
    Value,
    weight_bytes,
)

LOGITS = {"low": -(2**31), "high": 2**31 - 1}


def tiny(**changes):
    """Images of 1x2x2 bytes, an adder layer of two filters of 2x2, a linear layer to two logits."""
    weight = torch.tensor([[[[10, 20], [30, 40]]], [[[0, 0], [0, 255]]]], dtype=torch.uint8)
    adder = Layer(
        "adder", "a", "x", "y", weight, (1, 1), (0, 0), (1, 1), 1,
        Requantisation(torch.tensor([3, -1], dtype=torch.int32), torch.tensor([202, 6]), 2, 5, 100),
    )  # fmt: skip
    adder = dataclasses.replace(adder, **changes)
    last = layer(
        "conv", "b", "y", "z", torch.tensor([[1, -2], [127, -128]]).to(torch.int8)[..., None, None],
        scaled(2, 1.0, 0, **LOGITS),
    )  # fmt: skip
    values = [
        Value("x", (1, 2, 2), 0.5, 3),
        Value("y", (2, 1, 1), 0.25, 5),
        Value("z", (2, 1, 1), 0.125, 0, "int32"),
    ]
    return program([adder, last], values)


def test_the_numbers_of_a_small_net_by_hand():
    images = torch.tensor([[[[12, 20], [0, 44]]]], dtype=torch.uint8)
    values = interpreter.run(tiny(), images)
    # -(2 + 0 + 30 + 4) = -36; (-36 * 3 + 202) >> 2 = 94 >> 2 = 23
    # -(12 + 20 + 0 + 211) = -243; (243 + 6) >> 2 = 62
    assert values["y"].flatten().tolist() == [23, 62]
    # 23 - 2 * 62 = -101; 127 * 23 - 128 * 62 = -5015
    assert values["z"].flatten().tolist() == [-101, -5015]
    assert values["z"].dtype == torch.int32
    assert interpreter.logits(tiny(), images).tolist() == [[-101, -5015]]


def test_the_shift_rounds_down_and_results_are_clamped():
    how = Requantisation(
        torch.tensor([1, 1], dtype=torch.int32), torch.tensor([35, 10_000]), 2, 0, 100
    )
    images = torch.tensor([[[[12, 20], [0, 44]]]], dtype=torch.uint8)
    values = interpreter.run(tiny(requantisation=how), images)
    # (-36 + 35) >> 2 = -1, clamped to 0; (-243 + 10000) >> 2 = 2439, clamped to 100
    assert values["y"].flatten().tolist() == [0, 100]


def test_images_become_bytes():
    x = torch.tensor([[[[0.0, 0.25], [0.75, -9.0]]]])
    # 0 + 3; 0.5 rounds to even 0; 1.5 to 2; -18 + 3 below 0
    assert interpreter.to_bytes(x, 0.5, 3).flatten().tolist() == [3, 3, 5, 0]
    assert interpreter.to_bytes(1e9 + x, 0.5, 3).unique().tolist() == [255]
    as_bytes = torch.tensor([[[[3, 3], [5, 0]]]], dtype=torch.uint8)
    assert torch.equal(interpreter.logits(tiny(), x), interpreter.logits(tiny(), as_bytes))


def plain(program, images):
    """Every step in Python integers, one number at a time."""
    values = {program.input.name: images.tolist()}
    zero_points = {name: value.zero_point for name, value in program.values.items()}

    def requantised(total, how, c, residual=0):
        number = total * int(how.multiplier[c]) + int(how.offset[c])
        number = Fraction(number + how.residual_multiplier * residual, 2**how.shift)
        return min(max(number.numerator // number.denominator, how.low), how.high)

    def pixel(x, c, h, w, otherwise):
        inside = 0 <= h < len(x[c]) and 0 <= w < len(x[c][h])
        return x[c][h][w] if inside else otherwise

    for step in program.steps:
        C, H, W = program.values[step.output].shape
        result = []
        for n in range(len(images)):
            read = [values[name][n] for name in step.inputs]
            x, zero = read[0], zero_points[step.inputs[0]]
            y = [[[0] * W for _ in range(H)] for _ in range(C)]
            for c, i, j in itertools.product(range(C), range(H), range(W)):
                if isinstance(step, Layer):
                    _, depth, R, S = step.weight.shape
                    first = c // (C // step.groups) * depth
                    total = 0
                    for k, r, s in itertools.product(range(depth), range(R), range(S)):
                        h = i * step.stride[0] - step.padding[0] + r * step.dilation[0]
                        w = j * step.stride[1] - step.padding[1] + s * step.dilation[1]
                        a, b = pixel(x, first + k, h, w, zero), int(step.weight[c, k, r, s])
                        total += -abs(a - b) if step.kind == "adder" else a * b
                    residual = read[1][c][i][j] if step.residual else 0
                    y[c][i][j] = requantised(total, step.requantisation, c, residual)
                elif isinstance(step, MaxPool | AvgPool):
                    is_mean = isinstance(step, AvgPool)
                    window = [
                        pixel(x, c, i * step.stride[0] - step.padding[0] + r,
                              j * step.stride[1] - step.padding[1] + s, zero if is_mean else -1)
                        for r in range(step.kernel[0]) for s in range(step.kernel[1])
                    ]  # fmt: skip
                    y[c][i][j] = (
                        requantised(sum(window), step.requantisation, c) if is_mean else max(window)
                    )
                elif isinstance(step, Flatten):
                    flat = [number for channel in x for row in channel for number in row]
                    y[c][i][j] = flat[c]
                elif isinstance(step, Concat):
                    y[c][i][j] = [ch for value in read for ch in value][step.order[c]][i][j]
                elif isinstance(step, Add):
                    y[c][i][j] = requantised(x[c][i][j], step.requantisation, c, read[1][c][i][j])
                else:
                    y[c][i][j] = requantised(x[c][i][j], step.requantisation, c)
            result.append(y)
        values[step.output] = result
    return values


def test_every_step_is_what_plain_loops_say():
    net = every_step()
    images = random_images(net, 2)
    got, want = interpreter.run(net, images), plain(net, images)
    assert set(got) == set(net.values)
    for name, value in got.items():
        assert value.tolist() == want[name], name
        spread = value.float().std()
        assert spread > 1, f"{name} says nothing: it hardly varies"


def test_the_program_can_be_written_down_and_read_again():
    net = every_step()
    described, tensors = net.to_dict()
    again = Program.from_dict(json.loads(json.dumps(described)), tensors)
    images = random_images(net, 1)
    assert torch.equal(interpreter.logits(again, images), interpreter.logits(net, images))
    assert again.to_dict()[0] == described
    assert again.input == net.input
    assert again.values == net.values
    assert [type(step) for step in again.steps] == [type(step) for step in net.steps]
    assert set(tensors) == {
        f"{step.name}.{field}"
        for step in net.steps
        for field in ("weight", "multiplier", "offset", "order")
        if hasattr(step, field)
        or (hasattr(step, "requantisation") and field in ("multiplier", "offset"))
    }


def test_what_others_ask_of_a_program():
    net = every_step()
    assert [step.name for step in net.readers("pooled")] == [
        "body.requantise0", "body.requantise1", "add",
    ]  # fmt: skip
    assert net.float_layers == ()
    # Filled up to blocks of 8 filters and runs to steps of 8 bytes: 3 rows of 3 * 3, 8 * 3, 8 * 3
    # bytes; 4 groups of 3 rows of 3 * 2; 32 bytes.
    packed = 3 * 16 * 8 + 3 * 24 * 8 + 3 * 24 * 8 + 4 * 3 * 8 * 8 + 32 * 16
    assert weight_bytes(net.steps) == packed


def test_a_layer_in_float_reads_and_makes_bytes():
    weight = torch.tensor([[[[0.5]]], [[[-1.0]]]])
    left = FloatLayer(
        "f", "x", "y", weight, torch.tensor([1.0, 2.0]), (1, 1), (0, 0), (1, 1), 1, True
    )
    last = layer("conv", "b", "y", "z", torch.ones(1, 2, 1, 1, dtype=torch.int8),
                 scaled(1, 1.0, 0, **LOGITS))  # fmt: skip
    values = [Value("x", (1, 1, 1), 0.5, 4), Value("y", (2, 1, 1), 0.25, 2),
              Value("z", (1, 1, 1), 1.0, 0, "int32")]  # fmt: skip
    net = program([left, last], values)
    assert net.float_layers == ("f",)
    images = torch.full((1, 1, 1, 1), 10, dtype=torch.uint8)
    # (10 - 4) * 0.5 = 3: 2.5 and relu(-1): 2.5 / 0.25 + 2 = 12 and 2
    assert interpreter.run(net, images)["y"].flatten().tolist() == [12, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=99), "of format 99, this version reads 1 to 2"),
        (lambda d: d.pop("values"), "a damaged integer program: 'values'"),
        (lambda d: d["steps"][0].update(op="dance"), "a damaged integer program: 'dance'"),
        (lambda d: d["steps"][0].update(input="nothing"), "reads nothing before it is made"),
        (lambda d: d["steps"][0].update(groups=2), "8 filters of depth 3 in 2 groups on 3 chan"),
        (lambda d: d["values"][1].update(scale=0.0), "value stem: the scale is 0.0"),
        (lambda d: d["values"][1].update(zero_point=256), "value stem: the zero point is 256"),
        (lambda d: d["values"][2].update(scale=0.2), "pool: scale and zero point of stem and"),
        (lambda d: d["values"][4].update(shape=[8, 4, 5]), r"body.requantise1: makes \(8, 4, 4\)"),
        (lambda d: d["steps"][0]["requantisation"].update(shift=63), "shift must be within"),
        (lambda d: d["steps"][0]["requantisation"].update(high=256), "no range of uint8 values"),
        (lambda d: d["outputs"][0].update(num_classes=9), r"the output is int32 \(10, 1, 1\)"),
        (lambda d: d["steps"][1].update(name="stem.conv"), "steps share a name"),
        (lambda d: d["steps"][1].update(output="stem"), "two steps make one value"),
        (lambda d: d["steps"][7].update(residual="left"), r"add: adds \(5, 4, 4\) to \(8, 4, 4\)"),
    ],
)
def test_what_does_not_fit_together_is_refused(change, message):
    described, tensors = every_step().to_dict()
    change(described)
    with pytest.raises(ValueError, match=message):
        Program.from_dict(described, tensors)


def test_tensors_that_do_not_fit_are_refused():
    described, tensors = every_step().to_dict()
    for name, tensor, message in (
        ("fc.offset", torch.full((10,), 2**61), "may overflow 64 bits"),
        ("fc.multiplier", torch.zeros(10), "fc: multiplier is torch.float32"),
        ("fc.weight", torch.zeros(10, 32, 1, 1), "fc: the weight is torch.float32"),
        ("body.concat.order", torch.full((8,), 8), "order names channels beyond 8"),
    ):
        with pytest.raises(ValueError, match=message):
            Program.from_dict(described, tensors | {name: tensor})
    with pytest.raises(ValueError, match=r"a damaged integer program: 'fc.weight'"):
        Program.from_dict(described, {k: v for k, v in tensors.items() if k != "fc.weight"})


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"images must have shape \(N, \(1, 2, 2\)\), got"):
        interpreter.run(tiny(), torch.zeros(1, 1, 2, 3, dtype=torch.uint8))


# Several outputs, one layer used twice, group norms, enlarging ------------------------------------


def two_levels(**changes):
    """A 3x3 layer with a group norm on two levels, the coarse one enlarged and added to the fine.

    Both maps and the sum are outputs.
    """
    random = torch.Generator().manual_seed(3)
    weight = torch.randint(0, 256, (4, 2, 3, 3), dtype=torch.uint8, generator=random)
    conv = layer("adder", "head.conv", "x", "fine sums", weight,
                 scaled(4, 1.0, 1000, low=-(2**18), high=2**18), padding=1)  # fmt: skip
    norm = GroupNorm(
        "head.norm", "fine sums", "fine", torch.tensor([1.0, 2.0, -0.5, 1.5]),
        torch.tensor([0.25, 0.0, -1.0, 0.5]), 2, 0.5, 10, 255,
    )  # fmt: skip
    last = layer("conv", "logits", "fine", "fine logits",
                 torch.tensor([[1, -2, 3, 4], [0, 1, -1, 127]]).to(torch.int8)[..., None, None],
                 scaled(2, 1.0, 0, **LOGITS))  # fmt: skip
    steps = [
        conv,
        norm,
        last,
        MaxPool("thin", "x", "coarse x", (1, 1), (2, 2), (0, 0), (1, 1)),
        dataclasses.replace(conv, name="head.conv_1", input="coarse x", output="coarse sums",
                            shared="head.conv"),
        dataclasses.replace(norm, name="head.norm_1", input="coarse sums", output="coarse",
                            shared="head.norm"),
        dataclasses.replace(last, name="logits_1", input="coarse", output="coarse logits",
                            shared="logits"),
        Upsample("enlarge", "coarse", "large", (2, 2)),
        Add("add", "fine", "large", "sum", scaled(4, 0.5, 3, residual=0.25)),
        layer("conv", "other", "sum", "sum logits", torch.ones(1, 4, 1, 1, dtype=torch.int8),
              scaled(1, 1.0, 0, **LOGITS)),
    ]  # fmt: skip
    values = [
        Value("x", (2, 4, 6), 0.1, 7),
        Value("fine sums", (4, 4, 6), 0.01, 0, "int32"),
        Value("fine", (4, 4, 6), 0.05, 10),
        Value("fine logits", (2, 4, 6), 0.5, 0, "int32"),
        Value("coarse x", (2, 2, 3), 0.1, 7),
        Value("coarse sums", (4, 2, 3), 0.01, 0, "int32"),
        Value("coarse", (4, 2, 3), 0.05, 10),
        Value("coarse logits", (2, 2, 3), 0.5, 0, "int32"),
        Value("large", (4, 4, 6), 0.05, 10),
        Value("sum", (4, 4, 6), 0.06, 5),
        Value("sum logits", (1, 4, 6), 0.25, 0, "int32"),
    ]
    outputs = (
        Output("fine logits", 2, 0.5, True),
        Output("coarse logits", 2, 0.5, True),
        Output("sum logits", 1, 0.25, True),
    )
    return program(steps, values, outputs=outputs, takes_any_size=True, **changes)


def test_group_norms_are_those_of_torch():
    net = two_levels()
    images = random_images(net, 3)
    values = interpreter.run(net, images)
    norm = net.steps[1]
    for source, result in (("fine sums", "fine"), ("coarse sums", "coarse")):
        sums = values[source].double() * net.values[source].scale
        real = torch.nn.functional.group_norm(
            sums, 2, norm.weight.double(), norm.bias.double(), norm.eps
        )
        wanted = (real / net.values[result].scale + 10).clamp(10, 255)
        assert (values[result] - wanted).abs().max() <= 0.5 + 1e-9
        assert values[result].float().std() > 5
        assert int(values[result].min()) == 10  # a ReLU
    # By hand: the numbers 1, 3 and 2, 6 in two groups of one channel, without an epsilon.
    step = GroupNorm("n", "a", "b", torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0]), 2, 0.0, 0,
                     255)  # fmt: skip
    about = [Value("a", (2, 1, 2), 0.3, 9), Value("b", (2, 1, 2), 0.5, 100)]
    numbers = torch.tensor([[[[1, 3]], [[2, 6]]]], dtype=torch.uint8)
    # -1 and 1 in steps of a half; -2 + 1 and 2 + 1.
    assert interpreter.compute(step, [numbers], about).flatten().tolist() == [98, 102, 98, 106]


def test_group_norms_do_not_depend_on_the_order_of_memory():
    net = two_levels()
    step, about = net.steps[1], [net.values["fine sums"], net.values["fine"]]
    sums = torch.randint(-(2**18), 2**18, (2, 4, 50, 50), dtype=torch.int32)
    wanted = interpreter.compute(step, [sums], about)
    last = sums.contiguous(memory_format=torch.channels_last)
    assert torch.equal(interpreter.compute(step, [last], about), wanted)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(interpreter.compute(step, [sums], about), wanted)
    finally:
        torch.set_num_threads(threads)


def test_enlarging_repeats_pixels():
    step = Upsample("u", "a", "b", (2, 3))
    about = [Value("a", (1, 1, 2)), Value("b", (1, 2, 6))]
    numbers = torch.tensor([[[[4, 7]]]], dtype=torch.uint8)
    got = interpreter.compute(step, [numbers], about)
    assert got.tolist() == [[[[4, 4, 4, 7, 7, 7], [4, 4, 4, 7, 7, 7]]]]


def test_several_outputs_and_sizes():
    net = two_levels()
    module = IntegerNet(net)
    assert net.takes_any_size
    assert net.float_layers == ("head.norm",)
    with pytest.raises(ValueError, match="the net has 3 outputs: use outputs instead of output"):
        _ = net.output
    with pytest.raises(ValueError, match="the net has 3 outputs"):
        _ = module.output
    for size in ((4, 6), (8, 2)):
        images = random_images(net.resized(*size), 2)
        wanted = interpreter.outputs(net.resized(*size), images)
        got = module.integers(images)
        assert [tuple(one.shape) for one in got] == [
            (2, 2, *size), (2, 2, size[0] // 2, size[1] // 2), (2, 1, *size),
        ]  # fmt: skip
        assert all(torch.equal(one, two) for one, two in zip(got, wanted, strict=True))
        real = module(images)
        assert torch.equal(real[2], wanted[2].float() * 0.25)
    with pytest.raises(ValueError, match=r"add: adds \(4, 6, 6\) to \(4, 5, 6\)"):
        net.resized(5, 6)
    with pytest.raises(ValueError, match=r"images must have shape \(N, 2, H, W\)"):
        module(torch.zeros(1, 3, 4, 6))
    with pytest.raises(ValueError, match="takes images of 16x16 only, got 8x8"):
        every_step().resized(8, 8)


def test_a_layer_used_twice_is_held_once():
    net = two_levels()
    module = IntegerNet(net)
    assert {name for name, _ in module.named_modules() if "." in name} == {"head.conv", "head.norm"}
    # Each filled up to 8 filters: 3 rows of 3 * 2 bytes in steps of 8, and 4 bytes twice.
    assert weight_bytes(net.steps) == 8 * 3 * 8 + 2 * 8 * 8
    described, tensors = net.to_dict()
    assert not any("_1" in name for name in tensors)
    again = Program.from_dict(json.loads(json.dumps(described)), tensors)
    images = random_images(net, 2)
    for one, two in zip(
        interpreter.outputs(again, images), interpreter.outputs(net, images), strict=True
    ):
        assert torch.equal(one, two)
    assert module.program().to_dict()[0] == described


def test_files_of_format_1_are_read():
    net = every_step()
    described, tensors = net.to_dict()
    old = dict(described, version=1)
    (output,) = old.pop("outputs")
    old["output"] = {key: output[key] for key in ("name", "num_classes", "scale")}
    old["steps"] = [
        {key: value for key, value in step.items() if key != "shared"} for step in old["steps"]
    ]
    again = Program.from_dict(old, tensors)
    images = random_images(net, 1)
    assert torch.equal(interpreter.logits(again, images), interpreter.logits(net, images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["steps"][4].update(shared="no"), "a damaged integer program: 'no.multiplier'"),
        (lambda d: d["steps"][0].update(shared="head.conv"), "there is no step head.conv before"),
        (lambda d: d["steps"][6].update(residual="coarse logits"), "reads coarse logits before it"),
        (lambda d: d["steps"][4].update(stride=[2, 2]), r"makes \(4, 1, 2\)"),
        (lambda d: d["steps"][5].update(eps=0.1), "head.norm_1: is no other use of head.norm"),
        (lambda d: d["values"][5].update(scale=0.02), "head.conv_1: is no other use of head.conv"),
        (lambda d: d["steps"][0]["requantisation"].update(high=2**19), "beyond 262144"),
        (lambda d: d["steps"][1].update(num_groups=3), "head.norm: 4 channels in 3 groups"),
        (lambda d: d["steps"][1].update(high=256), "10 .. 256 is no range of uint8"),
        (lambda d: d["steps"][2].update(input="fine sums"), "logits: reads int32 values"),
        (lambda d: d["steps"][7].update(factor=[2, 1]), r"enlarge: makes \(4, 4, 3\), its value"),
        (lambda d: d["steps"][7].update(factor=[0, 2]), r"enlarge: enlarges by \(0, 2\)"),
        (lambda d: d["values"][8].update(scale=0.1), "enlarge: scale and zero point of coarse and"),
        (lambda d: d["outputs"].clear(), "there is no output"),
        (lambda d: d["outputs"][0].update(is_map=False), "fine logits depends on the size"),
    ],
)
def test_what_does_not_fit_together_on_levels_is_refused(change, message):
    described, tensors = two_levels().to_dict()
    change(described)
    with pytest.raises(ValueError, match=message) as error:
        Program.from_dict(described, tensors)
    assert "\n" not in str(error.value)
