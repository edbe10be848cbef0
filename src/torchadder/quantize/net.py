"""An integer program as a module: images in, logits out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchadder.quantize import interpreter, storage
from torchadder.quantize.modules import module_of
from torchadder.quantize.program import Input, Output, Program, Step, Value, only


class _Call(NamedTuple):
    """One use of a module; values are dropped after their last reader."""

    name: str
    module: Any
    inputs: tuple[str, ...]
    output: str
    shared: str | None
    finished: tuple[str, ...]

    def step(self) -> Step:
        """What is done, with the tensors that the module holds now."""
        step: Step = self.module.step()
        if self.shared is None:
            return step
        return dataclasses.replace(
            step,
            name=self.name,
            input=self.inputs[0],
            output=self.output,
            shared=self.shared,
        )  # type: ignore[call-arg]


class IntegerNet(nn.Module):
    """A net that computes with integers, as its program says.

    The modules have the names of the program's steps, which are those of the float net's layers:
    `net.layer1[0].conv1` of a residual net is `net.get_submodule("layer1.0.conv1")` here, an
    `Adder2dInt8`; a layer that the net uses several times is one module. A layer named as something
    that this class has itself, `output` for instance, is `output_1`. Bit-exact with
    `torchadder.quantize.interpreter` on every instruction set and number of threads, unless layers
    were left in float.

    Args:
        program: What it computes.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self._set_up(program)

    def _set_up(self, program: Program) -> None:
        self.input: Input = program.input
        self.outputs: tuple[Output, ...] = program.outputs
        self.bits = program.bits
        self.values_of: dict[str, Value] = dict(program.values)
        self.takes_any_size = program.takes_any_size
        self._reads_floats = program.values[program.input.name].dtype == "float32"
        modules: dict[str, nn.Module] = {}
        taken = {part for step in program.steps for part in step.name.split(".")}
        for step in program.steps:
            if getattr(step, "shared", None) is None:
                modules[step.name] = module_of(step, program)
                self._place(step.name, modules[step.name], taken)
        calls = []
        needed_later = {output.name for output in program.outputs}
        for step in reversed(program.steps):
            shared: str | None = getattr(step, "shared", None)
            finished = tuple(
                dict.fromkeys(name for name in step.inputs if name not in needed_later)
            )
            needed_later.update(finished)
            module = modules[shared or step.name]
            calls.append(_Call(step.name, module, step.inputs, step.output, shared, finished))
        self._calls = calls[::-1]

    def _place(self, name: str, module: nn.Module, taken: set[str]) -> None:
        *path, last = name.split(".")
        owner: nn.Module = self
        for part in path:
            part = _free_name(owner, part, taken)
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        owner.add_module(_free_name(owner, last, taken), module)

    @property
    def output(self) -> Output:
        """The only output; ValueError if there are several."""
        return only(self.outputs)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Logits.

        Args:
            images: (N, C, H, W) as the float net took them, floating point; or the program's own
                bytes, uint8, unless its first layer is in float.

        Returns:
            Logits (N, num_classes), float32: integers times one scale. A net with several outputs
            returns all of them in order, maps as (N, num_classes, H, W). Where the only output is
            an image of one pixel, (N, num_classes, 1, 1) of the float net, it is (N, num_classes).

        Raises:
            TypeError: If the images are bytes and the first layer is in float.
            ValueError: If the images are not of the size that the net was quantised for, and the
                net takes no other.
        """
        found = [
            integers if integers.is_floating_point() else integers.float() * output.scale
            for output, integers in zip(self.outputs, self._run(images), strict=True)
        ]
        return tuple(found) if len(found) > 1 else found[0]

    def integers(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The int32 logits (N, num_classes) of images; arguments as of `forward`."""
        found = self._run(images)
        return tuple(found) if len(found) > 1 else found[0]

    def _run(self, images: Tensor) -> list[Tensor]:
        values = {self.input.name: self._source(images)}
        for call in self._calls:
            values[call.output] = call.module(*[values[name] for name in call.inputs])
            for name in call.finished:
                del values[name]
        return [
            values[output.name] if output.is_map else values[output.name].flatten(1)
            for output in self.outputs
        ]

    def each_value(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Name and integers of every value of the net, in the order of computation."""
        values = {self.input.name: self._source(images)}
        yield self.input.name, values[self.input.name]
        for call in self._calls:
            values[call.output] = call.module(*[values[name] for name in call.inputs])
            yield call.output, values[call.output]
            for name in call.finished:
                del values[name]

    def _source(self, images: Tensor) -> Tensor:
        source = self.input
        size = images.shape[2:] if self.takes_any_size else (source.height, source.width)
        if images.dim() != 4 or tuple(images.shape[1:]) != (source.channels, *size):
            wanted = "H, W" if self.takes_any_size else f"{source.height}, {source.width}"
            raise ValueError(
                f"images must have shape (N, {source.channels}, {wanted}), for which the net was "
                f"quantised, got {tuple(images.shape)}"
            )
        if self._reads_floats and not images.is_floating_point():
            raise TypeError(
                f"images must be floats, which the first layer reads, got {images.dtype}"
            )
        if images.is_floating_point() and not self._reads_floats:
            images = interpreter.to_bytes(images, source.scale, source.zero_point)
        return images.contiguous(memory_format=torch.channels_last)

    def get_extra_state(self) -> Tensor:
        """What belongs to the tensors but is none: scales, zero points, shifts; JSON as bytes."""
        text = json.dumps(_numbers(self.program()))
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Refuses the tensors of a net that was calibrated otherwise.

        Raises:
            ValueError: If a number that belongs to them is another one here.
        """
        got = json.loads(bytes(state.cpu().tolist()))
        wanted = json.loads(json.dumps(_numbers(self.program())))
        for name in wanted | got:
            if wanted.get(name) != got.get(name):
                raise ValueError(
                    f"state of an integer net of another calibration: {name} is {got.get(name)}, "
                    f"wanted {wanted.get(name)}"
                )

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], *lists: Any,
    ) -> None:  # fmt: skip
        missing: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, *lists)
        # States of earlier versions have tensors only.
        missing_keys += [key for key in missing if key != f"{prefix}_extra_state"]

    def program(self) -> Program:
        """What the net computes, with the tensors that it holds now."""
        return Program(
            input=self.input,
            outputs=self.outputs,
            steps=tuple(call.step() for call in self._calls),
            values=self.values_of,
            bits=self.bits,
            takes_any_size=self.takes_any_size,
        )


def _numbers(program: Program) -> dict[str, Any]:
    """All that a program's tensors go with, by the names of steps and values; no image sizes."""
    steps = {f"step {step.name}": storage.describe(step, {}) for step in program.steps}
    values = {
        f"value {name}": [value.scale, value.zero_point, value.dtype]
        for name, value in program.values.items()
    }
    return steps | values


def _free_name(owner: nn.Module, wanted: str, taken: set[str]) -> str:
    """What a module of this name is called in `owner`: with a number if that is an attribute."""
    name, number = wanted, 0
    while (number and name in taken) or (name not in owner._modules and hasattr(owner, name)):
        number += 1
        name = f"{wanted}_{number}"
    return name
