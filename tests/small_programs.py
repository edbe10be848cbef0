"""Integer programs put together by hand, with every kind of step."""

import torch

from torchadder.quantize.program import (
    Add,
    Affine,
    AvgPool,
    Concat,
    Flatten,
    Input,
    Layer,
    MaxPool,
    Output,
    Program,
    Requantisation,
    Requantise,
    Value,
)

HALF = 1 << 19  # of a shift of 20


def scaled(channels, factor, offset=0, *, low=0, high=255, residual=0.0, shift=20):
    """`round(factor * sum + offset + residual * r)` clamped."""
    return Requantisation(
        torch.full((channels,), round(factor * 2**shift), dtype=torch.int32),
        torch.full((channels,), (offset << shift) + (1 << (shift - 1)), dtype=torch.int64),
        shift,
        low,
        high,
        round(residual * 2**shift),
    )


def layer(kind, name, source, result, weight, how, *, stride=1, padding=0, groups=1, residual=None):
    return Layer(
        kind,
        name,
        source,
        result,
        weight,
        (stride, stride),
        (padding, padding),
        (1, 1),
        groups,
        how,
        residual,
    )


def program(steps, values, input=None, outputs=None, **about):
    values = {value.name: value for value in values}
    first, *_, last = values
    C, H, W = values[first].shape
    return Program(
        input=input
        or Input(first, C, H, W, values[first].scale, values[first].zero_point, (0.5,), (0.25,)),
        outputs=outputs or (Output(last, values[last].shape[0], values[last].scale),),
        steps=tuple(steps),
        values=values,
        **about,
    )


def every_step(seed=0):
    """A small net that has every kind of step, with random filters."""
    random = torch.Generator().manual_seed(seed)

    def filters(*shape, dtype=torch.uint8):
        numbers = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
        return numbers if dtype == torch.uint8 else numbers.view(torch.int8)

    steps = [
        layer("conv", "stem.conv", "images", "stem", filters(8, 3, 3, 3, dtype=torch.int8),
              scaled(8, 0.0007, 60), stride=2, padding=1),
        MaxPool("pool", "stem", "pooled", (3, 3), (2, 2), (1, 1), (1, 1)),
        Requantise("body.requantise0", "pooled", "left in", scaled(8, 1.5, -3)),
        Requantise("body.requantise1", "pooled", "right in", scaled(8, 0.5, 7, high=127)),
        layer("adder", "body.group0", "left in", "left", filters(5, 8, 3, 3),
              scaled(5, 0.1, 800), padding=1),
        layer("adder", "body.group1", "right in", "right", filters(3, 8, 3, 3),
              scaled(3, 0.1, 800), padding=1),
        Concat("body.concat", ("left", "right"), "joined", torch.tensor([7, 0, 5, 1, 2, 6, 3, 4])),
        Add("add", "joined", "pooled", "sum", scaled(8, 0.75, -10, low=2, residual=0.5)),
        Affine("norm", "sum", "normed", Requantisation(
            torch.arange(-3, 5, dtype=torch.int32) * 2**18,
            torch.arange(8) * 2**22 + HALF, 20, 5, 250)),
        layer("adder", "last.adder", "normed", "features", filters(8, 2, 3, 3),
              scaled(8, 0.1, 230, residual=-0.25), padding=1, groups=4, residual="sum"),
        AvgPool("mean", "features", "means", (2, 2), (2, 2), (0, 0), scaled(8, 0.25)),
        Flatten("flatten", "means", "flat"),
        layer("conv", "fc", "flat", "logits", filters(10, 32, 1, 1, dtype=torch.int8),
              scaled(10, 3.0, -1000, low=-(2**31), high=2**31 - 1)),
    ]  # fmt: skip
    values = [
        Value("images", (3, 16, 16), 0.02, 110),
        Value("stem", (8, 8, 8), 0.1, 4),
        Value("pooled", (8, 4, 4), 0.1, 4),
        Value("left in", (8, 4, 4), 0.07, 1),
        Value("right in", (8, 4, 4), 0.2, 9),
        Value("left", (5, 4, 4), 0.3, 128),
        Value("right", (3, 4, 4), 0.3, 128),
        Value("joined", (8, 4, 4), 0.3, 128),
        Value("sum", (8, 4, 4), 0.1, 2),
        Value("normed", (8, 4, 4), 0.1, 77),
        Value("features", (8, 4, 4), 0.1, 12),
        Value("means", (8, 2, 2), 0.1, 12),
        Value("flat", (32, 1, 1), 0.1, 12),
        Value("logits", (10, 1, 1), 0.001, 0, "int32"),
    ]
    return program(steps, values)


def random_images(program, number, seed=1):
    random = torch.Generator().manual_seed(seed)
    source = program.input
    shape = (number, source.channels, source.height, source.width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
