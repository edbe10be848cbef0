"""Which steps of a float net are uses of one layer, and which values have integers in common.

A layer that a net uses several times, as the head of a detector does on every level, is one layer
in integers, too: one set of filters, one requantisation, one range of what it reads and of what it
makes. Filters of an adder layer have the scale of its input, so a scale for each use would take
filters for each use; and a norm behind the layer has the statistics of all uses together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from torchadder.quantize.graph import PASSING, FloatGraph, Step


@dataclass(frozen=True)
class Sharing:
    """What `find` finds.

    Attributes:
        first: For each step that uses a layer again, by the name of its value, the layer's first
            step.
        alike: For each value, the one that stands for all that have integers in common with it.
    """

    first: dict[str, Step]
    alike: dict[str, str]

    def is_again(self, step: Step) -> bool:
        """Whether a step uses the layer of an earlier one."""
        return step.output in self.first


def find(graph: FloatGraph) -> Sharing:
    """Sorts the steps and values of a net."""
    makers = {step.output: step for step in graph.steps}
    alike = {value: value for value in graph.nodes}

    def source(value: str) -> str:
        """The value that a pool, a flattening or an enlargement has handed on."""
        maker = makers.get(value)
        while maker is not None and maker.kind in PASSING:
            value = maker.inputs[0]
            maker = makers.get(value)
        return value

    def representative(value: str) -> str:
        while alike[value] != value:
            value = alike[value]
        return value

    first: dict[str, Step] = {}
    layers: dict[str, list[Step]] = {}
    for step in graph.steps:
        if step.kind not in ("adder", "conv", "group_norm") or not step.parameter:
            continue
        known = layers.setdefault(step.parameter, [])
        before = next((one for one in known if _is_one_layer(one, step, graph)), None)
        if before is None:
            known.append(step)
            continue
        first[step.output] = before
        for one, two in ((before.inputs[0], step.inputs[0]), (before.output, step.output)):
            alike[representative(source(two))] = representative(source(one))
    return Sharing(first, {value: representative(source(value)) for value in graph.nodes})


def is_wide(step: Step, graph: FloatGraph) -> bool:
    """Whether a layer's sums keep more than 8 bits, as only group norms read them."""
    readers = graph.readers(step.output)
    return (
        step.kind in ("adder", "conv")
        and step.output not in graph.outputs
        and bool(readers)
        and all(reader.kind == "group_norm" for reader in readers)
    )


def _is_one_layer(one: Step, two: Step, graph: FloatGraph) -> bool:
    """Whether two steps with one weight do the same, whatever was folded into them."""
    tensors = ((one.scale, two.scale), (one.shift, two.shift))
    return (
        len(one.inputs) == len(two.inputs) == 1
        and all(a is not None and b is not None and torch.equal(a, b) for a, b in tensors)
        and (one.kind, one.relu, one.window, one.num_groups, one.eps)
        == (two.kind, two.relu, two.window, two.num_groups, two.eps)
        and (one.output in graph.outputs) == (two.output in graph.outputs)
        and bool(graph.readers(one.output)) == bool(graph.readers(two.output))
        and is_wide(one, graph) == is_wide(two, graph)
        and _reads_wide(one, graph) == _reads_wide(two, graph)
    )


def _reads_wide(step: Step, graph: FloatGraph) -> bool:
    return any(maker.output == step.inputs[0] and is_wide(maker, graph) for maker in graph.steps)
