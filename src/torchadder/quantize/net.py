"""An integer program as a module: images in, logits out."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from torchadder.quantize import interpreter
from torchadder.quantize.modules import module_of
from torchadder.quantize.program import Input, Output, Program, Value


class IntegerNet(nn.Module):
    """A net that computes with integers, as its program says.

    The modules have the names of the program's steps, which are those of the float net's layers:
    `net.layer1[0].conv1` of a residual net is `net.get_submodule("layer1.0.conv1")` here, an
    `Adder2dInt8`. Bit-exact with `torchadder.quantize.interpreter` on every instruction set and
    number of threads, unless layers were left in float.

    Args:
        program: What it computes.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self._set_up(program)

    def _set_up(self, program: Program) -> None:
        self.input: Input = program.input
        self.output: Output = program.output
        self.bits = program.bits
        self.values_of: dict[str, Value] = dict(program.values)
        self._reads_floats = program.values[program.input.name].dtype == "float32"
        schedule = []
        needed_later = {program.output.name}
        for step in reversed(program.steps):
            module = module_of(step, program)
            # Values are dropped after their last reader.
            finished = tuple(
                dict.fromkeys(name for name in step.inputs if name not in needed_later)
            )
            needed_later.update(finished)
            schedule.append((step.name, module, step.inputs, step.output, finished))
        self._schedule = schedule[::-1]
        for name, module, *_ in self._schedule:
            self._place(name, module)

    def _place(self, name: str, module: nn.Module) -> None:
        *path, last = name.split(".")
        owner: nn.Module = self
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        owner.add_module(last, module)

    def forward(self, images: Tensor) -> Tensor:
        """Logits.

        Args:
            images: (N, C, H, W) as the float net took them, floating point; or the program's own
                bytes, uint8.

        Returns:
            Logits (N, num_classes), float32: integers times one scale.

        Raises:
            ValueError: If the images are not of the size that the net was quantised for.
        """
        logits = self.integers(images)
        return logits if logits.is_floating_point() else logits.float() * self.output.scale

    def integers(self, images: Tensor) -> Tensor:
        """The int32 logits (N, num_classes) of images; arguments as of `forward`."""
        values = {self.input.name: self._source(images)}
        for _, module, inputs, output, finished in self._schedule:
            values[output] = module(*[values[name] for name in inputs])
            for name in finished:
                del values[name]
        return values[self.output.name].flatten(1)

    def each_value(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Name and integers of every value of the net, in the order of computation."""
        values = {self.input.name: self._source(images)}
        yield self.input.name, values[self.input.name]
        for _, module, inputs, output, finished in self._schedule:
            values[output] = module(*[values[name] for name in inputs])
            yield output, values[output]
            for name in finished:
                del values[name]

    def _source(self, images: Tensor) -> Tensor:
        source = self.input
        shape = (source.channels, source.height, source.width)
        if images.dim() != 4 or tuple(images.shape[1:]) != shape:
            raise ValueError(
                f"images must have shape (N, {', '.join(map(str, shape))}), for which the net was "
                f"quantised, got {tuple(images.shape)}"
            )
        if images.is_floating_point() and not self._reads_floats:
            images = interpreter.to_bytes(images, source.scale, source.zero_point)
        return images.contiguous(memory_format=torch.channels_last)

    def program(self) -> Program:
        """What the net computes, with the tensors that it holds now."""
        return Program(
            input=self.input,
            output=self.output,
            steps=tuple(module.step() for _, module, *_ in self._schedule),
            values=self.values_of,
            bits=self.bits,
        )
