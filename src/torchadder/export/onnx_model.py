"""Float nets as ONNX models in which every adder layer is a node `torchadder.Adder2d`.

The net is traced by `torch.export` and translated by torch's own exporter; the definition of
`Adder2d` by standard operators (`adder_function`) is put into the file, so that any runtime loads
it. Integer nets are not written here.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

import torchadder
from torchadder.export.errors import ExportError, first_line
from torchadder.export.traced import checked_path, trace, write
from torchadder.ops.geometry import accumulation_dtype, make_geometry, output_shape

if TYPE_CHECKING:
    import onnx

_LIMIT = 2**31 - 1
"""Bytes of a protobuf message, as which a model is stored."""

_SCOPES = "pkg.torch.onnx.name_scopes"
"""Where torch's exporter writes the path of the layer that a node comes from."""

_SYMBOL = re.compile(r"s\d+")
_AXES = ("batch", "channels", "height", "width")


def to_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    example: Tensor,
    *,
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
    input_name: str = "input",
) -> Path:
    """Write a float net as an ONNX model, adder layers as nodes ``torchadder.Adder2d``.

    The file holds the definition of ``Adder2d`` as a local function of standard operators (opset
    18), so every runtime that knows ONNX functions and Scan runs it; batch norms behind
    convolutions are folded into them. Sums are taken in float32 (float64 for float64 nets), like
    in torch; adder layers of half precision are computed in float32. `docs/export.md` has speed
    and memory. The file appears under its name only when it is complete and checked by onnx.

    Args:
        model: A net that takes one tensor and returns a tensor, or a sequence or dict of them; in
            evaluation mode. Layers: everything that torch's exporter knows, and Adder1d, Adder2d,
            AdderLinear, AdderTranspose2d.
        path: File to write, its name ending in ".onnx".
        example: Input of the kind that the net takes, batch first; only its shape, dtype and device
            matter.
        dynamic_batch: Whether the model takes any number of images.
        dynamic_size: Whether it takes images of any size that the net can process.
        input_name: Name of the input in the file. Outputs are named "output", by their keys if the
            net returns a dict, or "output_0" and so on.

    Returns:
        The path.

    Raises:
        ExportError: If the net is in training mode, does something that cannot be translated
            (named, with its layer), is larger than 2 GiB, or gives an output the name of its input
            or of a weight; or without the packages that ``pip install 'torchadder[export]'``
            brings.
        ValueError: If the file's name or the example is wrong.
        OSError: If the file cannot be written.
    """
    path = checked_path(path, ".onnx")
    _check_packages()
    program = trace(model, example, dynamic_batch=dynamic_batch, dynamic_size=dynamic_size)
    proto = translate(program, input_name=input_name)
    if proto.ByteSize() > _LIMIT:
        raise ExportError(f"the model takes {proto.ByteSize()} bytes; ONNX files hold {_LIMIT}")
    return write(path, proto.SerializeToString(deterministic=True))


def translate(program: ExportedProgram, *, input_name: str = "input") -> onnx.ModelProto:
    """Translate a traced net with one input; arguments and errors as in `to_onnx`."""
    _check_packages()
    import onnx
    from torch.onnx import OnnxExporterError

    from torchadder.export import adder_function

    _refuse_other_operators(program)
    names = _output_names(program)
    _refuse_used_names(names, input_name, program)
    program = program.run_decompositions({torch.ops.torchadder.adder2d.default: _adder2d_node})
    try:
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=adder_function.OPSET,
            input_names=[input_name],
            output_names=names,
            verbose=False,
        )
    except OnnxExporterError as error:
        raise ExportError(_reason(error)) from error
    assert exported is not None
    model = exported.model_proto
    model.functions.append(adder_function.adder2d())
    _tidy(model)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"onnx refuses the model: {first_line(error)}") from error
    return model


def _check_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(
            f"export to ONNX needs the package {error.name}: pip install 'torchadder[export]'"
        ) from error


def _refuse_other_operators(program: ExportedProgram) -> None:
    """Raise ExportError for operators of this package that have no ONNX form."""
    for node in program.graph.nodes:
        operator = str(node.target)
        if (
            operator.startswith("torchadder.")
            and node.target != torch.ops.torchadder.adder2d.default
        ):
            kind = operator.split(".")[1]
            what = "integer layers" if "int8" in kind else f"layers of the operator {kind}"
            raise ExportError(f"{_layer_of(node)}: {what} cannot be exported to ONNX")


def _layer_of(node: torch.fx.Node) -> str:
    """Path of the layer that an operation belongs to, or the operation's own name."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    return paths[-1] if paths else node.name


def _adder2d_node(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    grad: str,
) -> Tensor:
    """The operator as a node of our own domain, and what that node leaves out."""
    shape = output_shape(input, weight, bias, make_geometry(stride, padding, dilation, groups))
    wide = accumulation_dtype(input.dtype)
    output = torch.onnx.ops.symbolic(
        "torchadder::Adder2d",
        (input.to(wide), weight.to(wide)),
        {
            "strides": list(stride),
            "pads": [*padding, *padding],
            "dilations": list(dilation),
            "group": groups,
        },
        dtype=wide,
        shape=shape,
        version=1,
    )
    if bias is not None:
        output = output + bias.to(wide)[:, None, None]
    return output.to(input.dtype)


def _output_names(program: ExportedProgram) -> list[str]:
    """Names of the outputs: "output", the keys of a dict, or numbers."""
    spec = program.call_spec.out_spec
    assert spec is not None
    count = spec.num_leaves
    if spec.is_leaf():
        return ["output"]
    outputs = pytree.tree_unflatten(list(range(count)), spec)
    if isinstance(outputs, Mapping) and list(outputs.values()) == list(range(count)):
        return [str(key) for key in outputs]
    return [f"output_{i}" for i in range(count)]


def _refuse_used_names(outputs: list[str], input_name: str, program: ExportedProgram) -> None:
    """Raise ExportError unless all that has a name in the file has its own."""
    taken = {input_name: "the input", **dict.fromkeys(program.state_dict, "a weight")}
    if input_name in program.state_dict:
        raise ExportError(f"input_name: {input_name!r} is the name of a weight; choose another")
    for number, name in enumerate(outputs):
        if not name or name in taken:
            other = f"is the name of {taken[name]}" if name else "is empty"
            raise ExportError(f"output {number}: its key {name!r} {other}; give it another")
        taken[name] = "an earlier output"


def _tidy(model: onnx.ModelProto) -> None:
    """Name nodes by their layers, dynamic axes by what they are; forget how torch got here.

    The exporter records source lines with their paths: the same net would give other bytes on
    another machine.
    """
    model.producer_name = "torchadder"
    model.producer_version = torchadder.__version__
    graph = model.graph
    seen: dict[str, int] = {}
    values = {}
    outputs = {output.name for output in graph.output}
    for node in graph.node:
        scopes = {entry.key: entry.value for entry in node.metadata_props}.get(_SCOPES, "[]")
        layer = ".".join(scope for scope in ast.literal_eval(scopes)[1:-1] if scope)
        name = f"{layer or 'net'}/{node.op_type}"
        count = seen[name] = seen.get(name, 0) + 1
        node.name = name if count == 1 else f"{name}_{count}"
        if node.domain == "torchadder" and node.output[0] not in outputs:
            values[node.output[0]] = node.name
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = values.get(name, name)
    for value in graph.value_info:
        value.name = values.get(value.name, value.name)
    axes = _axis_names(graph.input[0])
    for value in [*graph.input, *graph.output, *graph.value_info]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = _SYMBOL.sub(lambda m: axes.get(m[0], m[0]), dim.dim_param)
    for part in (
        model,
        graph,
        *graph.node,
        *graph.initializer,
        *graph.value_info,
        *graph.input,
        *graph.output,
    ):
        part.ClearField("metadata_props")


def _axis_names(value: onnx.ValueInfoProto) -> dict[str, str]:
    """Names of the dynamic axes of the input by the symbols that torch has for them."""
    dims = value.type.tensor_type.shape.dim
    names = _AXES if len(dims) == 4 else ("batch", *(f"axis_{i}" for i in range(1, len(dims))))
    return {dim.dim_param: name for dim, name in zip(dims, names, strict=True) if dim.dim_param}


def _reason(error: BaseException) -> str:
    """What the exporter could not do, from the innermost cause, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    operator = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(error))
    if operator:
        return f"the operator {operator[1]} has no ONNX form"
    return f"cannot be translated to ONNX: {first_line(error)}"
