"""An integer program as text: C99 source, header, main program and Makefile.

The kernels are C files beside this module, in `source/`; what is written here is their tables and
the order of their calls. Sizes and distances in memory are computed here, so that the C code
multiplies nothing to find its way. How the numbers of the program came about is not known here.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Sequence
from importlib import resources

import torch
from torch import Tensor

import torchadder
from torchadder.export.c import arena
from torchadder.export.c.report import StepCost
from torchadder.quantize import interpreter
from torchadder.quantize import program as p

_FIRST_STATE, _FACTOR, _INCREMENT = 1, 1664525, 1013904223
"""A linear congruential generator (Numerical Recipes): the made-up bytes of `classify --check`."""

_STRUCT_BYTES = {"window": 72, "requantisation": 28, "layer": 132}
"""Of the structures in `source/` where pointers have 32 bits."""

_KERNELS = ("layer", "adder", "conv", "rescale", "pool", "pick", "spread", "flatten")
"""The files of `source/` that are taken where they are needed, in this order."""


class Writer:
    """Collects the tables, calls and costs of a program.

    Args:
        program: Without layers in float, its images and logits as `torchadder.export.to_c` wants.
        name: Prefix of files and functions.
        class_names: One for each logit.
        pixel_bytes: (C, 256), uint8: the input byte of each pixel value.
    """

    def __init__(
        self, program: p.Program, name: str, class_names: Sequence[str], pixel_bytes: Tensor
    ) -> None:
        self.program = program
        self.name = name
        self.class_names = class_names
        # Nothing reads what comes after the logits.
        made = [step.output for step in program.steps]
        self.steps = program.steps[: made.index(program.output.name) + 1]
        self.arena = arena.plan(program, self.steps)
        self.costs: list[StepCost] = []
        self._tables: list[str] = []
        self._calls: list[str] = []
        self._kernels: set[str] = set()
        self._table_bytes = 0
        self._most_taps = 0
        self._most_channels = program.output.num_classes
        self._add_table("uint8_t", "pixel_bytes", pixel_bytes)
        for number, step in enumerate(self.steps, start=1):
            self._write(step, number)

    @property
    def table_bytes(self) -> int:
        """Bytes of all constants."""
        return self._table_bytes

    @property
    def ram_bytes(self) -> int:
        """Bytes of static memory."""
        return self.arena.size + self._most_taps + 4 * self._most_channels

    def files(self) -> dict[str, str]:
        """Text of the files by name."""
        return {
            f"{self.name}.h": self._fill("net.h"),
            f"{self.name}.c": self._fill("net.c"),
            "main.c": self._fill("main.c"),
            "Makefile": self._fill("Makefile"),
        }

    # Templates ------------------------------------------------------------------------------------

    def _fill(self, template: str) -> str:
        """A file of `source/` with `@key@` replaced."""
        return re.sub(r"@(\w+)@", lambda match: self._entries[match[1]], _source(template))

    @functools.cached_property
    def _entries(self) -> dict[str, str]:
        program = self.program
        numbers = {
            "most_channels": str(self._most_channels),
            "most_taps": str(self._most_taps),
        }
        kernels = "\n".join(
            re.sub(r"@(\w+)@", lambda match: numbers[match[1]], _source(f"{kernel}.c"))
            for kernel in ("common", *(k for k in _KERNELS if k in self._kernels))
        )
        return {
            "name": self.name,
            "NAME": self.name.upper(),
            "version": torchadder.__version__,
            "title": f"an integer net of {len(self.steps)} steps",
            "height": str(program.input.height),
            "width": str(program.input.width),
            "channels": str(program.input.channels),
            "num_pixels": str(program.input.height * program.input.width),
            "image_bytes": str(math.prod(program.values[program.input.name].shape)),
            "num_classes": str(program.output.num_classes),
            "arena_bytes": str(self.arena.size),
            "ram_bytes": str(self.ram_bytes),
            "table_bytes": str(self.table_bytes),
            "zero_point": str(program.input.zero_point),
            "input_scale": f"{program.input.scale:.9g}",
            "output_scale": f"{program.output.scale:.9g}",
            "input_offset": str(self.arena.offsets[program.input.name]),
            "pnm": "pgm" if program.input.channels == 1 else "ppm",
            "kernels": kernels.rstrip(),
            "tables": "\n\n".join([*self._tables, self._names()]),
            "steps": "\n".join(self._calls),
            "check_logits": ", ".join(map(str, check_logits(program))),
        }

    def _names(self) -> str:
        names = ",\n".join(f"    {_quoted(name)}" for name in self.class_names)
        size = f"{self.name.upper()}_CLASSES"
        return f"const char *const {self.name}_class_names[{size}] = {{\n{names}}};"

    # Steps ----------------------------------------------------------------------------------------

    def _write(self, step: p.Step, number: int) -> None:
        before = self._table_bytes
        sources = [self.program.values[name].shape for name in step.inputs]
        shape = self.program.values[step.output].shape
        self._calls.append(f"  /* {_comment(step.name)} */")
        num_add, num_mul, num_requantise = 0, 0, math.prod(shape)
        if isinstance(step, p.Layer):
            self._layer(step, number)
            num_taps = math.prod(shape) * math.prod(step.weight.shape[1:])
            num_add = 2 * num_taps if step.kind == "adder" else num_taps
            num_mul = 0 if step.kind == "adder" else num_taps
            num_requantise *= 1 if step.residual is None else 2
        elif isinstance(step, p.Add | p.Affine):
            self._rescale(step, number)
            num_requantise *= len(step.inputs)
        elif isinstance(step, p.AvgPool | p.MaxPool):
            self._pool(step, number)
            if isinstance(step, p.AvgPool):
                num_add = math.prod(shape) * math.prod(step.kernel)
            else:
                num_requantise = 0
        elif isinstance(step, p.Flatten):
            num_requantise = 0
            C, H, W = sources[0]
            if arena.is_in_order(step, self.program):
                self._calls[-1] = f"  /* {_comment(step.name)}: in order already */"
            else:
                self._kernels.add("flatten")
                source, target = self._place(step.input), self._place(step.output)
                self._calls.append(f"  flatten({H * W}, {C}, {source}, {target});")
        else:
            assert isinstance(step, p.Concat)
            num_requantise = 0
            self._concat(step, number)
        kind = step.kind if isinstance(step, p.Layer) else step.op
        self.costs.append(
            StepCost(step.name, kind, self._table_bytes - before, num_add, num_mul, num_requantise)
        )

    def _layer(self, step: p.Layer, number: int) -> None:
        kernel = "adder" if step.kind == "adder" else "conv"
        self._kernels |= {"layer", kernel}
        O, depth, R, S = step.weight.shape
        taps, count = depth * R * S, O // step.groups
        self._most_taps = max(self._most_taps, taps)
        self._most_channels = max(self._most_channels, O)
        filters = step.weight.permute(0, 2, 3, 1).reshape(O, taps)
        self._add_table(
            "uint8_t" if step.kind == "adder" else "int8_t", f"filters_{number}", filters
        )
        how = self._requantisation(step.requantisation, number)
        window = self._window(
            step.input, step.output, (R, S), step.stride, step.padding, step.dilation
        )
        function = "sum_differences" if step.kind == "adder" else "sum_products"
        self._add_struct(
            "layer",
            f"layer_{number}",
            f"{{\n    {window},\n"
            f"    {function}, filters_{number},\n"
            f"    {step.groups}, {depth}, {taps}, {count}, {count * taps}, {O},\n"
            f"    {how}}}",
        )
        residual = "NULL" if step.residual is None else self._place(step.residual)
        self._calls.append(
            f"  run_layer(&layer_{number}, {self._place(step.input)}, {residual}, "
            f"{self._place(step.output)});"
        )

    def _rescale(self, step: p.Add | p.Affine, number: int) -> None:
        self._kernels.add("rescale")
        C, H, W = self.program.values[step.output].shape
        self._most_channels = max(self._most_channels, C)
        how = self._requantisation(step.requantisation, number)
        self._add_struct("requantisation", f"scale_{number}", how)
        residual = self._place(step.residual) if isinstance(step, p.Add) else "NULL"
        self._calls.append(
            f"  rescale(&scale_{number}, {H * W}, {C}, {self._place(step.input)}, {residual}, "
            f"{self._place(step.output)});"
        )

    def _pool(self, step: p.AvgPool | p.MaxPool, number: int) -> None:
        self._kernels.add("pool")
        C = self.program.values[step.output].shape[0]
        self._most_channels = max(self._most_channels, C)
        dilation = step.dilation if isinstance(step, p.MaxPool) else (1, 1)
        window = self._window(
            step.input, step.output, step.kernel, step.stride, step.padding, dilation
        )
        self._add_struct("window", f"window_{number}", window)
        how = "NULL"
        if isinstance(step, p.AvgPool):
            scale = self._requantisation(step.requantisation, number)
            self._add_struct("requantisation", f"scale_{number}", scale)
            how = f"&scale_{number}"
        self._calls.append(
            f"  pool(&window_{number}, {how}, {C}, {self._place(step.input)}, "
            f"{self._place(step.output)});"
        )

    def _concat(self, step: p.Concat, number: int) -> None:
        C, H, W = self.program.values[step.output].shape
        if len(step.inputs) == 1:
            self._kernels.add("pick")
            (name,) = step.inputs
            self._add_table("uint16_t", f"sources_{number}", step.order)
            self._calls.append(
                f"  pick({H * W}, {self.program.values[name].shape[0]}, {C}, sources_{number}, "
                f"{self._place(name)}, {self._place(step.output)});"
            )
            return
        self._kernels.add("spread")
        # Groups of filters become one layer, whose channels they are: each has one place.
        assert torch.equal(step.order.sort().values, torch.arange(C)), step.name
        # order[c] is where channel c comes from; its inverse is where each one goes.
        places = torch.empty(C, dtype=torch.int64)
        places[step.order] = torch.arange(C)
        start = 0
        for part, name in enumerate(step.inputs):
            channels = self.program.values[name].shape[0]
            table = f"places_{number}_{part}"
            self._add_table("uint16_t", table, places[start : start + channels])
            self._calls.append(
                f"  spread({H * W}, {channels}, {C}, {table}, {self._place(name)}, "
                f"{self._place(step.output)});"
            )
            start += channels

    # Parts ----------------------------------------------------------------------------------------

    def _place(self, value: str) -> str:
        if self.program.values[value].dtype != "uint8":
            return "NULL"
        return f"activations + {self.arena.offsets[value]}"

    def _window(
        self,
        source: str,
        target: str,
        kernel: p.Pair,
        stride: p.Pair,
        padding: p.Pair,
        dilation: p.Pair,
    ) -> str:
        C, H, W = self.program.values[source].shape
        _, P, Q = self.program.values[target].shape
        row = W * C
        shape = (H, W, P, Q, *kernel, *stride, *padding, *dilation)
        first = -(padding[0] * row + padding[1] * C)
        distances = (dilation[1] * C, dilation[0] * row, stride[1] * C, stride[0] * row)
        zero_point = self.program.values[source].zero_point
        return f"{{{', '.join(map(str, (*shape, first, *distances, zero_point)))}}}"

    def _requantisation(self, how: p.Requantisation, number: int) -> str:
        multiplier, offset = how.multiplier, how.offset
        is_shared = bool((multiplier == multiplier[0]).all() and (offset == offset[0]).all())
        if is_shared:
            multiplier, offset = multiplier[:1], offset[:1]
        self._add_table("int32_t", f"multiplier_{number}", multiplier)
        self._add_table("int64_t", f"offset_{number}", offset)
        numbers = (int(not is_shared), how.shift, how.low, how.high, how.residual_multiplier)
        values = ", ".join(_literal(value, 32) for value in numbers)
        return f"{{multiplier_{number}, offset_{number}, {values}}}"

    def _add_struct(self, kind: str, name: str, text: str) -> None:
        self._table_bytes += _STRUCT_BYTES[kind]
        self._tables.append(f"static const struct {kind} {name} = {text};")

    def _add_table(self, kind: str, name: str, values: Tensor) -> None:
        bits = int(re.sub(r"\D", "", kind))
        self._table_bytes += values.numel() * bits // 8
        size = "".join(f"[{length}]" for length in values.shape)
        rows = values.tolist()
        if values.dim() == 1:
            body = _lines(_literal(value, bits) for value in rows)
        else:
            inner = (_lines(_literal(value, bits) for value in row) for row in rows)
            body = ",\n".join(f"    {{\n{row}}}" for row in inner)
        self._tables.append(f"static const {kind} {name}{size} = {{\n{body}}};")


def check_logits(program: p.Program) -> list[int]:
    """The logits of made-up bytes, by the interpreter."""
    C, H, W = program.values[program.input.name].shape
    state, values = _FIRST_STATE, []
    for _ in range(C * H * W):
        state = (state * _FACTOR + _INCREMENT) % 2**32
        values.append(state >> 24)
    images = torch.tensor(values, dtype=torch.uint8).view(1, H, W, C).permute(0, 3, 1, 2)
    return interpreter.logits(program, images.contiguous())[0].tolist()


@functools.cache
def _source(name: str) -> str:
    return (resources.files("torchadder.export.c") / "source" / name).read_text(encoding="utf-8")


def _literal(value: int, bits: int) -> str:
    """A number as C writes it: the smallest ones have no literal of their own type."""
    if bits == 64:
        return f"INT64_C({value})"
    return f"(-{-value - 1} - 1)" if value == -(2**31) else str(value)


def _lines(literals: Iterable[str]) -> str:
    """Literals, separated by commas, in lines of about a hundred letters."""
    lines, line = [], "   "
    for literal in literals:
        if len(line) + len(literal) > 98:
            lines.append(line)
            line = "   "
        line += f" {literal},"
    return "\n".join([*lines, line]).rstrip(",")


def _quoted(text: str) -> str:
    """A C string; whatever is not plain ASCII in octal, which no letter behind it can lengthen."""
    plain = re.compile(r"[ !#-&(->@-\[\]-~]")
    return (
        '"'
        + "".join(
            chr(byte) if plain.fullmatch(chr(byte)) else f"\\{byte:03o}" for byte in text.encode()
        )
        + '"'
    )


def _comment(text: str) -> str:
    """Text that cannot end or open a comment."""
    return re.sub(r"[^\w.\-: ]", "_", text, flags=re.ASCII)
