"""Counting by running: a dispatch mode below the model sees every operator call and its module.

A copy of the model whose tensors have shapes and no values is run once on the meta device. A model
whose control flow depends on values (box suppression in a detector) cannot run there; then a copy
that shares the parameters is run on its own device, and the counted operators return zeros of the
right shape instead of being computed. The model itself never runs: forward passes may write to
attributes (a detector caches its anchors), and those of the caller must not hold meta tensors.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from torchadder.energy.costs import CostTable, MemoryCost
from torchadder.energy.formulas import (
    Arithmetic,
    IntegerSide,
    count_bias,
    count_call,
    count_elementwise,
    integer_side,
    is_product,
)
from torchadder.energy.integers import program_operations
from torchadder.energy.operations import MEMORY, REQUANTISE, Operations, requantise
from torchadder.energy.report import EnergyReport, LayerCount
from torchadder.quantize import HasCore, integer_net
from torchadder.quantize.program import Program

_INTEGER_SIDE = "integer side"
"""Kind of the tallies from which rows of requantisation and memory traffic are made."""


def count(
    model: nn.Module,
    *inputs: Any,
    costs: CostTable | None = None,
    dtype: torch.dtype | Mapping[str, torch.dtype] | None = None,
    include_elementwise: bool = False,
    include_requantisation: bool = False,
    memory: MemoryCost | None = None,
    **kwargs: Any,
) -> EnergyReport:
    """Count the multiplications and additions of one forward pass and the energy they take.

    A tap of a convolution or matrix product is 1 multiplication and 1 addition, a tap of an adder
    layer 2 additions (the rule behind the tables of AdderNet, arXiv 1912.13200, and of adder
    detection, arXiv 2112.13608); energy = sum of the counts times the costs of the layer's number
    format. Functional calls count like modules, a layer called twice counts twice. What runs, in
    evaluation mode on the meta device, is a copy without values: the model, its statistics,
    gradients, flags and attributes and the random number generators stay as they are, nothing
    large is allocated, and a model whose parameters are meta tensors will do. Hooks run on the
    copy.

    Where values decide what is computed (detectors), shapes are not enough: the model is run on
    its own device with the counted operators returning zeros, and `EnergyReport.note` says so.
    Counts behind such a decision hold for that run, not for every image.

    Args:
        model: any `nn.Module`.
        *inputs: positional inputs: a tensor, or a tuple of integers that stands for a tensor of
            that shape in the model's number format, or a list or dict of those (a detector takes
            a list of images, such as `[(3, 800, 1344)]`). Tensors are not written to.
        costs: energy of one addition and multiplication by number format; default `CostTable()`.
        dtype: number format to take the energy and the weights' size for, instead of each layer's
            own: `torch.int8` answers "what if all of it ran in int8". A dict gives the formats of
            modules by their paths, and of everything inside them, "" being the model, for a net
            of mixed formats.
        include_elementwise: also count biases, normalisation (with running statistics),
            activations, pooling and residual additions; the papers do not. Exponentials and their
            like are neither multiplications nor additions and never counted.
        include_requantisation: also count what makes bytes of the sums of int8 layers, in rows
            of their own: 1 multiplication and 3 additions a result, 1 and 1 more where a residual
            is added, in int32.
        memory: also count the memory traffic, in rows of their own, for this memory: every layer
            reads its images and weights once and writes its result; norms, activations and biases
            are part of the layer before them.
        **kwargs: keyword arguments of the model, tensors among them moved like the inputs.

    Returns:
        The rows and totals; `print(report)` shows a table.

    Raises:
        TypeError: if `model` is no `nn.Module` or an input is a list of integers.
        ValueError: if the model cannot be copied or run on these inputs, has uninitialised lazy
            parameters, or `costs` has no figure for a layer's number format, or requantisation
            is asked for where nothing is int8.

    >>> report = count(nn.Conv2d(3, 16, 3, padding=1, bias=False), (1, 3, 32, 32))
    >>> report.num_mul, report.num_add
    (442368, 442368)
    """
    model = _unwrap(model)
    for value in inputs:
        _check_input(value)
    how = _Costing(costs or CostTable(), dtype, include_requantisation, memory)
    held = integer_net(model)
    if held is not None:
        program = held.program()
        if isinstance(model, HasCore):
            # The size that the net sees: a detector resizes and pads its images.
            images = model.core_images(_materialise(inputs[0], torch.device("cpu"), torch.float32))
            program, batch = program.resized(*images.shape[2:]), len(images)
        else:
            batch, *size = _images_shape(inputs)
            program = _program_for(program, *size)
        rows = list(program_operations(program, batch, include_elementwise=include_elementwise))
        return _report(model, rows, {row.name for row in rows}, how, "meta", "")
    on_meta = _Recorder(include_elementwise)
    device, note = "meta", ""
    try:
        _run(model, inputs, kwargs, on_meta, torch.device("meta"))
        recorder = on_meta
    # The model is the caller's code: whatever it raises without values, it may not raise with.
    except Exception as meta_error:
        real = _device_of(model)
        if real.type == "meta":
            raise _cannot_run(model, inputs, meta_error) from meta_error
        recorder = _Recorder(include_elementwise)
        try:
            _run(model, inputs, kwargs, recorder, real)
        except Exception as error:
            raise _cannot_run(model, inputs, error) from error
        device = real.type
        note = f"shapes alone were not enough ({_first_sentence(meta_error)})"
    return _report(model, recorder.operations(), recorder.called, how, device, note)


@dataclass(frozen=True)
class _Costing:
    """What the caller asked for."""

    costs: CostTable
    dtype: torch.dtype | Mapping[str, torch.dtype] | None
    include_requantisation: bool
    memory: MemoryCost | None

    def dtype_of(self, path: str, own: torch.dtype) -> torch.dtype:
        """Number format of a module: that of the longest path around it, else its own."""
        if not isinstance(self.dtype, Mapping):
            return self.dtype or own
        while path and path not in self.dtype:
            path = path.rpartition(".")[0]
        return self.dtype.get(path, own)

    def is_requantised(self, row: Operations) -> bool:
        """Whether a row is one of requantisation that is asked for."""
        is_integer = self.dtype_of(row.name, row.dtype) in (torch.int8, torch.uint8)
        return row.op == REQUANTISE and is_integer and self.include_requantisation


@dataclass
class _Tally:
    """The running sum of one row."""

    output_shape: tuple[int, ...]
    calls: int = 0
    num_mul: int = 0
    num_add: int = 0
    num_outputs: int = 0
    num_residuals: int = 0
    num_moved: int = 0


class _Recorder:
    """Adds up calls by module path, kind of operator and number format."""

    def __init__(self, include_elementwise: bool) -> None:
        self.include_elementwise = include_elementwise
        self.tallies: dict[tuple[str, str, torch.dtype], _Tally] = {}
        self.called: set[str] = set()

    def add(self, path: str, counted: Arithmetic, dtype: torch.dtype, out: Tensor) -> None:
        tally = self._tally(path, counted.op, dtype, out)
        tally.calls += 1
        tally.num_mul += counted.num_mul
        tally.num_add += counted.num_add

    def add_integer_side(
        self, path: str, side: IntegerSide, dtype: torch.dtype, out: Tensor
    ) -> None:
        tally = self._tally(path, _INTEGER_SIDE, dtype, out)
        tally.calls += 1
        tally.num_outputs += side.num_outputs
        tally.num_residuals += side.num_residuals
        tally.num_moved += side.num_moved

    def _tally(self, path: str, op: str, dtype: torch.dtype, out: Tensor) -> _Tally:
        return self.tallies.setdefault((path, op, dtype), _Tally(tuple(out.shape)))

    def operations(self) -> list[Operations]:
        """Everything that was recorded."""
        rows: list[Operations] = []
        for (path, op, dtype), tally in self.tallies.items():
            shape, calls = tally.output_shape, tally.calls
            if op != _INTEGER_SIDE:
                rows.append(
                    Operations(path, op, shape, dtype, tally.num_mul, tally.num_add, calls=calls)
                )
                continue
            if tally.num_outputs + tally.num_residuals:
                rows.append(
                    requantise(path, shape, dtype, tally.num_outputs, tally.num_residuals, calls)
                )
            moved = tally.num_moved
            rows.append(Operations(path, MEMORY, shape, dtype, num_moved=moved, calls=calls))
        return rows


class _CountingMode(TorchDispatchMode):
    """Records every counted operator call; off the meta device it skips their values."""

    def __init__(
        self, recorder: _Recorder, current_path: Callable[[], str], skip_values: bool
    ) -> None:
        super().__init__()
        self.recorder = recorder
        self.current_path = current_path
        self.skip_values = skip_values

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        product = is_product(func)
        if not product:
            # Without autograd (inference mode) composite operators arrive whole: look inside them.
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = (
            _zeros_of(func, args, kwargs) if product and self.skip_values else func(*args, **kwargs)
        )
        if product:
            # The operands decide the format: the output of an int8 product is int32.
            self._record(count_call(func, args, kwargs, out), _first_dtype(args), out)
            if self.recorder.include_elementwise:
                self._record(count_bias(func, args, out), _first_dtype(out), out)
        elif self.recorder.include_elementwise:
            self._record(count_elementwise(func, args, out), _first_dtype(out), out)
        self._record_integer_side(func, args, out)
        return out

    def _record_integer_side(
        self, func: torch._ops.OpOverload, args: tuple[Any, ...], out: Any
    ) -> None:
        side, dtype = integer_side(func, args, out), _first_dtype(args)
        if side is not None and dtype is not None:
            first = next(leaf for leaf in tree_flatten(out)[0] if isinstance(leaf, Tensor))
            if first.numel():
                self.recorder.add_integer_side(self.current_path(), side, dtype, first)

    def _record(self, counted: Arithmetic | None, dtype: torch.dtype | None, out: Any) -> None:
        if counted is None or dtype is None or not counted.num_mul + counted.num_add:
            return
        first = next(leaf for leaf in tree_flatten(out)[0] if isinstance(leaf, Tensor))
        self.recorder.add(self.current_path(), counted, dtype, first)


def _zeros_of(func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return zeros of the shapes `func` would return, on the device of its first tensor."""
    leaves = tree_flatten((args, kwargs))[0]
    device = next(leaf.device for leaf in leaves if isinstance(leaf, Tensor))
    shape_args, shape_kwargs = tree_map(
        lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf, (args, kwargs)
    )
    shapes = func(*shape_args, **shape_kwargs)
    return tree_map(
        lambda leaf: torch.zeros_like(leaf, device=device) if isinstance(leaf, Tensor) else leaf,
        shapes,
    )


@contextmanager
def _track_path(model: nn.Module, called: set[str]) -> Iterator[Callable[[], str]]:
    """Yield a function that returns the path of the module now running; collect them in `called`.

    The hooks are torch's global ones, so the model's own stay as they are; modules that are not
    part of the model count for the module that called them.
    """
    names: dict[int, str] = {}
    for name, module in model.named_modules():
        names.setdefault(id(module), name)
    stack = [""]

    def enter(module: nn.Module, args: Any) -> None:
        stack.append(names.get(id(module), stack[-1]))
        called.add(stack[-1])

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        stack.pop()

    handles = [
        register_module_forward_pre_hook(enter),
        register_module_forward_hook(leave, always_call=True),
    ]
    try:
        yield lambda: stack[-1]
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _unfused_attention() -> Iterator[None]:
    """Make attention run as the matrix products that it is, so that they are seen."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _run(
    model: nn.Module,
    inputs: tuple[Any, ...],
    kwargs: dict[str, Any],
    recorder: _Recorder,
    device: torch.device,
) -> None:
    """Run a copy of the model once on `device`, recording its operators."""
    on_meta = device.type == "meta"
    twin = _twin(model, on_meta)
    arguments = tuple(_materialise(value, device, _dtype_of(model)) for value in inputs)
    keywords = tree_map(lambda leaf: _move(leaf, device), kwargs)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_unfused_attention())
        current_path = stack.enter_context(_track_path(twin, recorder.called))
        stack.enter_context(_CountingMode(recorder, current_path, skip_values=not on_meta))
        twin(*arguments, **keywords)


def _twin(model: nn.Module, on_meta: bool) -> nn.Module:
    """Copy the modules and their attributes, but not the values of their parameters.

    The copy is in evaluation mode. Its tensors are meta tensors, or, if not `on_meta`, the
    parameters of `model` itself and clones of everything that a forward pass may write to.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in tree_flatten(dict(vars(module)))[0]:
            if not isinstance(tensor, Tensor) or id(tensor) in memo:
                continue
            if isinstance(tensor, nn.Parameter):
                meta = nn.Parameter(tensor.detach().to("meta"), requires_grad=False)
                memo[id(tensor)] = meta if on_meta else tensor
            else:
                memo[id(tensor)] = (
                    tensor.detach().to("meta") if on_meta else tensor.detach().clone()
                )
    twin = copy.deepcopy(model, memo)
    for module in twin.modules():
        # Not eval(), which may be overridden.
        module.training = False
    return twin


def _report(
    model: nn.Module,
    rows: list[Operations],
    called: set[str],
    how: _Costing,
    device: str,
    note: str,
) -> EnergyReport:
    paths = {row.name for row in rows if row.op not in (REQUANTISE, MEMORY)}
    bytes_of_row: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        row = _row_of(name, paths, called)
        itemsize = how.dtype_of(name.rpartition(".")[0], parameter.dtype).itemsize
        bytes_of_row[row] = bytes_of_row.get(row, 0) + parameter.numel() * itemsize
    weight_bytes = sum(bytes_of_row.values()) + sum(row.weight_bytes for row in rows)
    if how.include_requantisation and paths and not any(map(how.is_requantised, rows)):
        raise ValueError(
            "include_requantisation is for int8 layers and nothing here is int8: pass "
            "dtype=torch.int8 or an integer net"
        )
    layers = []
    for row in rows:
        if row.op == REQUANTISE and not how.is_requantised(row):
            continue
        if row.op == MEMORY and how.memory is None:
            continue
        dtype = torch.int32 if row.op == REQUANTISE else how.dtype_of(row.name, row.dtype)
        num_bytes = row.num_moved * dtype.itemsize
        if row.op == MEMORY and how.memory is not None:
            energy_pj = num_bytes * how.memory.pj_per_byte
        else:
            cost = how.costs.of(dtype)
            energy_pj = row.num_mul * cost.mul + row.num_add * cost.add
        layers.append(
            LayerCount(
                name=row.name,
                op=row.op,
                output_shape=row.output_shape,
                calls=row.calls,
                num_mul=row.num_mul,
                num_add=row.num_add,
                # The module's first row takes all its bytes, so that the column adds up.
                weight_bytes=bytes_of_row.pop(row.name, 0) + row.weight_bytes,
                dtype=str(dtype).removeprefix("torch."),
                energy_pj=energy_pj,
                num_bytes=num_bytes,
            )
        )
    config = getattr(model, "config", None)
    name = config.get("name") if isinstance(config, dict) else None
    return EnergyReport(
        model=str(name or type(model).__name__),
        layers=tuple(layers),
        weight_bytes=weight_bytes,
        costs=how.costs,
        device=device,
        note=note,
        memory=how.memory.name if how.memory else "",
    )


def _row_of(parameter: str, rows: set[str], called: set[str]) -> str:
    """Return the path of the module on whose row a parameter's bytes belong.

    That is the module that holds it, or, if that one was never called (the output projection
    inside attention) or only computes the parameter (a parametrisation), the one around it.
    """
    path = parameter.rpartition(".")[0]
    path = f".{path}".partition(".parametrizations.")[0].removeprefix(".")
    while path and path not in rows and path not in called:
        path = path.rpartition(".")[0]
    return path


def _unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside the wrappers of torch.compile and data parallelism."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    parallel = nn.DataParallel | nn.parallel.DistributedDataParallel
    while isinstance(model, parallel) or hasattr(model, "_orig_mod"):
        inner = model.module if isinstance(model, parallel) else model._orig_mod
        assert isinstance(inner, nn.Module)
        model = inner
    lazy = [name for name, value in model.named_parameters() if is_lazy(value)]
    if lazy:
        raise ValueError(f"{lazy[0]} has no shape yet: run the model once before counting it")
    return model


def _images_shape(inputs: tuple[Any, ...]) -> tuple[int, int, int, int]:
    """Shape of the only input, (N, C, H, W)."""
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor | tuple):
        raise ValueError(f"an integer net takes one batch of images, got {len(inputs)} inputs")
    images = inputs[0]
    shape = tuple(images.shape if isinstance(images, Tensor) else images)
    if len(shape) != 4:
        raise ValueError(f"an integer net takes images (N, C, H, W), got {shape}")
    return shape


def _program_for(program: Program, channels: int, height: int, width: int) -> Program:
    """The program for images of a shape.

    Raises:
        ValueError: if it takes none of that shape.
    """
    if channels != program.input.channels:
        raise ValueError(
            f"the integer net takes images of {program.input.channels} channels, got {channels}"
        )
    if (height, width) == (program.input.height, program.input.width):
        return program
    return program.resized(height, width)


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and bool(value)
        and all(isinstance(size, int) and not isinstance(size, bool) for size in value)
    )


def _check_input(value: Any) -> None:
    if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
        raise TypeError(f"a shape is a tuple of integers, got the list {value}")
    if _is_shape(value) and min(value) < 0:
        raise ValueError(f"the sizes of an input shape must not be negative, got {value}")


def _materialise(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Turn shapes into zeros and move tensors, inside lists, tuples and dicts too."""
    if _is_shape(value):
        return torch.zeros(value, device=device, dtype=dtype)
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(_materialise(item, device, dtype) for item in value)
    if isinstance(value, dict):
        return {key: _materialise(item, device, dtype) for key, item in value.items()}
    return _move(value, device)


def _move(value: Any, device: torch.device) -> Any:
    """Return a tensor on `device` that shares no memory with `value`; other values as they are."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    return value.to(device) if value.device != device else value.clone()


def _first_dtype(values: Any) -> torch.dtype | None:
    leaves = tree_flatten(values)[0]
    return next((leaf.dtype for leaf in leaves if isinstance(leaf, Tensor)), None)


def _dtype_of(model: nn.Module) -> torch.dtype:
    """Return the format of the first floating-point parameter, torch's default without one."""
    formats = (value.dtype for value in model.parameters() if value.is_floating_point())
    return next(formats, torch.get_default_dtype())


def _device_of(model: nn.Module) -> torch.device:
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")


def _first_sentence(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip().partition(". ")[0] if lines else type(error).__name__


def _cannot_run(model: nn.Module, inputs: tuple[Any, ...], error: BaseException) -> ValueError:
    shapes = tree_map(lambda leaf: tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf, inputs)
    described = ", ".join(map(str, shapes)) or "no inputs"
    return ValueError(
        f"{type(model).__name__} cannot be run on {described}: "
        f"{type(error).__name__}: {_first_sentence(error)}"
    )
