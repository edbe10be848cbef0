"""Checkpoints: one safetensors file that holds the weights and, as JSON, what they belong to.

Tensors are stored as they are, bit by bit, under the names of `state_dict`. The file's metadata has
one entry, "torchadder": the model's config (name and arguments), the operator behind every weight,
a checksum and whatever the caller adds. Reading a checkpoint executes nothing: no pickle, and only
models of `torchadder.models` and detectors of `torchadder.detection` are built from a config.
Optimizer state and training are not the business of this module.
"""

import contextlib
import importlib
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from torchadder import awn
from torchadder.atomic import write_atomically
from torchadder.models.published import difference
from torchadder.nn import AdderModule
from torchadder.quantize.core import HasCore, integer_net
from torchadder.quantize.net import IntegerNet
from torchadder.quantize.program import Program

__all__ = ["CheckpointError", "CheckpointInfo", "load", "load_into", "read_info", "save"]

FILE_NAME = "model.safetensors"
"""Name of the checkpoint inside a folder or a repository of the Hugging Face hub."""

_SUFFIX = ".safetensors"
_FORMAT_VERSION = 1
_BUILDERS = ("torchadder.models", "torchadder.detection")
"""Packages whose `build` a config may call. Those above this module are imported when a file names
them: detectors need torchvision, and read the weights of their backbones from here."""
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class CheckpointError(ValueError):
    """A checkpoint cannot be written, read or used; the message is one line for the user."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says about itself, read without its tensors.

    Attributes:
        config: name and arguments for `torchadder.models.build`, or for that of the package named
            under "package"; None for a model of other origin.
        operators: class and geometry of each convolution, linear and adder layer by module name,
            such as `{"type": "Adder2d", "stride": [2, 2], ..., "grad": "clip"}`. Empty for files
            of other origin.
        metadata: what the caller of `save` added.
        aliases: names under which a tensor occurs again in the model: name to stored name.
        checksum: CRC-32 of the values in the order of their names; None for files of other origin.
        program: What an integer net computes, for `torchadder.quantize.Program.from_dict` with the
            tensors of the file; None for nets in float.
    """

    config: dict[str, Any] | None
    operators: dict[str, dict[str, Any]]
    metadata: dict[str, Any]
    aliases: dict[str, str]
    checksum: int | None = None
    program: dict[str, Any] | None = None


def save(
    model: nn.Module, path: str | os.PathLike[str], *, metadata: Mapping[str, Any] | None = None
) -> Path:
    """Write the weights and the config of `model` to one file, all of it or nothing.

    The file appears under its name only when it is complete; an older one stays intact until then.

    Args:
        model: any module. If it comes from `torchadder.models` or `torchadder.detection` and still
            has the layers its config says, the config is stored and `load` rebuilds it; the weights
            of any other model, or of one that was converted or changed since, come back through
            `load_into`. Normalised weights (`torchadder.awn`) are stored as the plain ones that
            `torchadder.awn.bake_` would leave; the model stays as it is. An integer net
            (`torchadder.quantize_`) is stored as its program, from which `load`
            makes it again without the float net; a detector around one with its config, too.
        path: a file name ending in ".safetensors", or a folder, for `model.safetensors` in it.
            Missing folders are made.
        metadata: JSON values to keep with the weights, such as class names.

    Returns:
        The path of the file.

    Raises:
        CheckpointError: if the path has another suffix, a tensor or the metadata cannot be stored,
            or writing fails.
        ValueError: if a weight has a further parametrization beside its normalisation.
    """
    path = file_of(Path(path))
    model = _uncompiled(model)
    program, values = None, awn.baked_state_dict(model)
    integers = integer_net(model)
    if integers is not None:
        program, values = integers.program().to_dict()
    tensors, aliases = _storable(values)
    described = {
        "version": _FORMAT_VERSION,
        "config": _config_of(model) if integers is None else _config_around(model),
        "operators": _operators(model),
        "aliases": aliases,
        "checksum": _checksum(tensors),
        "metadata": dict(metadata or {}),
    }
    if program is not None:
        described["program"] = program
    try:
        text = json.dumps(described, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: metadata must be JSON values: {_line(error)}") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, serialize(tensors, metadata={"format": "pt", "torchadder": text}))
    except KeyError as error:
        raise CheckpointError(f"{path}: safetensors cannot store {_line(error)} tensors") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot write the checkpoint: {_line(error)}") from error
    return path


def load(path_or_hub_id: str | os.PathLike[str], *, revision: str | None = None) -> nn.Module:
    """Rebuild a model or a detector with the weights of a checkpoint.

    Args:
        path_or_hub_id: a file, a folder with `model.safetensors`, or, if nothing of that name
            exists here, a repository "owner/name" of the Hugging Face hub.
        revision: branch, tag or commit of the hub repository.

    Returns:
        The model on the CPU, in evaluation mode, with the stored number formats. Weights that were
        tied when they were saved are tied again.

    Raises:
        CheckpointError: if there is no such file, it is no safetensors file or damaged, has no
            config, or the config does not fit the weights.
    """
    path = _find(path_or_hub_id, revision)
    with _opened(path) as (info, tensors):
        if info.program is not None:
            return _around(info.config, _integer_net(info.program, tensors, path), path).eval()
        if info.config is None:
            raise CheckpointError(
                f"{path}: no config of a torchadder model inside; build the model and use "
                "torchadder.checkpoint.load_into(model, path)"
            )
        model = _rebuilt(info.config, path)
        # A name and its alias hold one tensor, and get one copy.
        copies = {id(tensor): tensor.clone() for tensor in tensors.values()}
        state = {name: copies[id(tensor)] for name, tensor in tensors.items()}
        _check_fit(model, state, info, path, same_operators=True)
        model.load_state_dict(state, assign=True)
        _tie(model, info.aliases)
    return model.eval()


def load_into(
    model: nn.Module,
    path_or_hub_id: str | os.PathLike[str],
    *,
    revision: str | None = None,
    same_operators: bool = True,
) -> CheckpointInfo:
    """Copy the weights of a checkpoint into `model`; on any error the model is left as it was.

    Values take the device and number format of the model's own tensors.

    Args:
        model: a module with exactly the names and shapes of the checkpoint.
        path_or_hub_id: as in `load`; the file may come from another program.
        revision: branch, tag or commit of the hub repository.
        same_operators: also ask that each weight belongs to the same kind of layer, with the same
            stride, padding, dilation and groups, as when it was saved. The CNN and the adder net of
            one architecture have the same names and shapes, and the weights of one are useless in
            the other; pass False to do it all the same. Gradient rules may differ.

    Returns:
        What the checkpoint says about itself.

    Raises:
        CheckpointError: if the file cannot be read, or belongs to another architecture.
    """
    path = _find(path_or_hub_id, revision)
    model = _uncompiled(model)
    with _opened(path) as (info, tensors):
        if info.program is not None or integer_net(model) is not None:
            raise CheckpointError(
                f"{path}: integer nets are made by torchadder.load, not loaded into a model"
            )
        _check_fit(model, tensors, info, path, same_operators)
        model.load_state_dict(tensors)
    return info


def read_info(
    path_or_hub_id: str | os.PathLike[str], *, revision: str | None = None
) -> CheckpointInfo:
    """Read what a checkpoint says about itself, without its tensors.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    path = _find(path_or_hub_id, revision)
    with _reader(path) as file:
        return _parse_info(file.metadata(), path)


def file_of(path: Path) -> Path:
    """The file that `save` writes for a path.

    Raises:
        CheckpointError: if the path has another suffix.
    """
    if path.suffix == _SUFFIX and not path.is_dir():
        return path
    if path.is_dir() or not path.suffix:
        return path / FILE_NAME
    raise CheckpointError(f"{path}: a checkpoint's name ends in {_SUFFIX}, not in {path.suffix}")


def _integer_net(
    program: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path
) -> IntegerNet:
    values = {name: tensor.clone() for name, tensor in tensors.items()}
    try:
        return IntegerNet(Program.from_dict(program, values)).eval()
    except ValueError as error:
        raise CheckpointError(f"{path}: {_line(error)}") from error


def _config_around(model: nn.Module) -> dict[str, Any] | None:
    """Return the config of a detector around an integer net, None for the net alone."""
    config, package = getattr(model, "config", None), getattr(model, "built_by", None)
    return None if config is None else {"package": package, **config}


def _around(config: Mapping[str, Any] | None, net: IntegerNet, path: Path) -> nn.Module:
    """Return the model around an integer net that a config describes, or the net itself."""
    if config is None:
        return net
    model = _rebuilt(config, path)
    if not isinstance(model, HasCore):
        raise CheckpointError(f"{path}: a {config['name']} cannot hold an integer net")
    try:
        model.use_integers_(net)
    except (AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: the integer net is no detector's: {_line(error)}"
        ) from error
    return model


def _rebuilt(config: Mapping[str, Any], path: Path) -> nn.Module:
    """Return the model that a config describes, with initial values."""
    try:
        # Initial values are drawn and overwritten: the caller's random numbers stay untouched.
        with torch.random.fork_rng(devices=[]):
            return _build(config)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot rebuild the model from its config: {_line(error)}"
        ) from error


def _tie(model: nn.Module, aliases: Mapping[str, str]) -> None:
    """Make one parameter of those that were one when they were saved."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, stored in aliases.items():
        if name in parameters and stored in parameters:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, parameters[stored])


def _storable(values: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a state dict with every tensor once and contiguous, and the names left out.

    Tied weights are one tensor under several names; views of one memory (slices) are separated.
    """
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first_name: dict[tuple[Any, ...], str] = {}
    for name, value in values.items():
        # state_dict detaches, so parameters and buffers with values arrive as plain tensors.
        if type(value) is not Tensor:
            raise CheckpointError(f"{name} is a {type(value).__name__}, only tensors can be stored")
        if value.device.type == "meta" or value.layout != torch.strided or value.is_quantized:
            raise CheckpointError(
                f"{name} is on {value.device} in {value.layout} layout as {value.dtype}; "
                "only dense tensors with values can be stored"
            )
        key = (value.data_ptr(), value.dtype, value.device, value.shape, value.stride())
        if value.numel() and key in first_name:
            aliases[name] = first_name[key]
            continue
        first_name[key] = name
        tensors[name] = value.detach().cpu()
    seen: set[int] = set()
    for name, value in tensors.items():
        memory = value.untyped_storage().data_ptr()
        if memory in seen or not value.is_contiguous():
            value = value.contiguous() if memory not in seen else value.clone().contiguous()
        seen.add(memory)
        tensors[name] = value
    return tensors, aliases


def _operators(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return class and geometry of every convolution, linear and adder layer, as JSON values."""
    operators = {}
    for name, module in model.named_modules():
        if isinstance(module, AdderModule | nn.modules.conv._ConvNd | nn.Linear):
            described: dict[str, Any] = {"type": _kind(module).__name__}
            for attribute in (
                "stride",
                "padding",
                "dilation",
                "groups",
                "padding_mode",
                "grad",
                "p",
            ):
                value = getattr(module, attribute, None)
                if value is not None:
                    described[attribute] = list(value) if isinstance(value, tuple) else value
            operators[name] = described
    return operators


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    checksum = 0
    for name in sorted(tensors):
        values = tensors[name].reshape(-1).view(torch.uint8)
        checksum = zlib.crc32(values.numpy().data, checksum)
    return checksum


def _uncompiled(model: nn.Module) -> nn.Module:
    """Return the module that torch.compile wrapped: its names carry no `_orig_mod.`."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def _config_of(model: nn.Module) -> dict[str, Any] | None:
    """Return the model's config if building from it gives a model with the same layers."""
    config = getattr(model, "config", None)
    package = getattr(model, "built_by", None)
    if package not in _BUILDERS or not isinstance(config, dict):
        return None
    if package != _BUILDERS[0]:
        config = {"package": package, **config}
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            rebuilt = _build(config)
    except (KeyError, TypeError, ValueError):
        # Built from a layer class that a file must not name, or edited: weights only.
        return None
    same = _operators(rebuilt) == _operators(model) and _kinds(rebuilt) == _kinds(model)
    state = awn.baked_state_dict(model)
    return config if same and not difference(state, rebuilt.state_dict()) else None


def _build(config: Mapping[str, Any]) -> nn.Module:
    """Return the model that a config describes, with fresh weights.

    Raises:
        KeyError: if the config lacks a part.
        ValueError: if its package is none that may build, or an argument has a wrong value.
        TypeError: if its builder takes no such argument.
    """
    package = config.get("package", _BUILDERS[0])
    if package not in _BUILDERS:
        raise ValueError(f"package {package!r} is none of {', '.join(_BUILDERS)}")
    return importlib.import_module(package).build(config["name"], **config["kwargs"])


def _kinds(model: nn.Module) -> dict[str, type[nn.Module]]:
    """Return the class of every module; batch norms that compute alike count as one class.

    Data-parallel training replaces them by ones that synchronise, with the same state. What
    normalises a weight is left out: it is not stored.
    """
    norm = nn.modules.batchnorm._BatchNorm
    kinds = {
        name: norm if isinstance(module, norm) else _kind(module)
        for name, module in model.named_modules()
    }
    for layer in awn.normalised_layers(model):
        inside = f"{layer}.parametrizations".lstrip(".")
        kinds = {name: kind for name, kind in kinds.items() if not name.startswith(inside)}
    return kinds


def _kind(module: nn.Module) -> type[nn.Module]:
    """Return the class of a module, that of the plain layer if its weight is normalised."""
    if awn.weight_norm(module) is None:
        return type(module)
    return nn.utils.parametrize.type_before_parametrizations(module)


def _find(path_or_hub_id: str | os.PathLike[str], revision: str | None) -> Path:
    """Return the local file that holds the checkpoint, downloading it from the hub if need be."""
    path = Path(path_or_hub_id)
    text = os.fspath(path_or_hub_id)
    if path.is_dir():
        path = path / FILE_NAME
    if path.is_file():
        return path
    is_hub_id = _HUB_ID.fullmatch(text) is not None and path.suffix != _SUFFIX
    if not is_hub_id or path.exists() or path.parent.is_dir():
        raise CheckpointError(f"{path}: no such checkpoint")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(text, FILE_NAME, revision=revision))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{text}: no such file or folder, and {FILE_NAME} cannot be had from a hub repository "
            f"of that name: {_line(error)}"
        ) from error


@contextlib.contextmanager
def _reader(path: Path) -> Iterator[Any]:
    try:
        # Opened by us first: for what it cannot read, safetensors names no file.
        with open(path, "rb"):
            pass
        reader = safe_open(path, framework="pt", device="cpu")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a complete safetensors file: {_line(error)}") from error
    with reader as file:
        yield file


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[CheckpointInfo, dict[str, Tensor]]]:
    """Yield the description and the tensors, aliases included; the tensors are memory-mapped."""
    with _reader(path) as file:
        info = _parse_info(file.metadata(), path)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if info.checksum is not None and _checksum(tensors) != info.checksum:
            raise CheckpointError(f"{path}: damaged: the values do not match their checksum")
        for name, stored in info.aliases.items():
            if stored not in tensors:
                raise CheckpointError(f"{path}: {name} repeats {stored}, which is not in the file")
            tensors[name] = tensors[stored]
        yield info, tensors


def _parse_info(metadata: Mapping[str, str] | None, path: Path) -> CheckpointInfo:
    text = (metadata or {}).get("torchadder")
    if text is None:
        return CheckpointInfo(config=None, operators={}, metadata={}, aliases={})
    try:
        described = json.loads(text)
        version = described["version"]
        if version != _FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: written in format {version}, this version reads {_FORMAT_VERSION}"
            )
        if not isinstance(described["config"], Mapping | None):
            raise TypeError(f"config is no mapping: {described['config']!r}")
        info = CheckpointInfo(
            config=described["config"],
            operators=dict(described["operators"]),
            metadata=dict(described["metadata"]),
            aliases=dict(described["aliases"]),
            checksum=described["checksum"],
            program=described.get("program"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged description: {_line(error)}") from error
    return info


def _check_fit(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    info: CheckpointInfo,
    path: Path,
    same_operators: bool,
) -> None:
    """Raise CheckpointError unless the checkpoint belongs to the architecture of `model`."""
    normalised = list(awn.normalised_layers(model))
    if normalised:
        raise CheckpointError(
            f"{path}: the weights of {normalised[0]} are normalised, and checkpoints hold plain "
            "ones; load them before torchadder.awn.apply_, or use load_state_dict"
        )
    wanted = {
        name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)
    }
    problems = difference(tensors, wanted, limit=3)
    if not problems:
        problems = [
            f"{name} is {str(tensors[name].dtype).removeprefix('torch.')} instead of "
            f"{str(value.dtype).removeprefix('torch.')}"
            for name, value in wanted.items()
            if tensors[name].is_floating_point() != value.is_floating_point()
            or tensors[name].is_complex() != value.is_complex()
        ][:3]
    if not problems and same_operators and info.operators:
        problems = _operator_changes(info.operators, _operators(model))[:3]
    if problems:
        origin = f" (saved from {info.config['name']})" if info.config else ""
        name = (getattr(model, "config", None) or {}).get("name") or type(model).__name__
        raise CheckpointError(f"{path}{origin} does not fit {name}: {'; '.join(problems)}")


def _operator_changes(
    saved: Mapping[str, Mapping[str, Any]], own: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Say which layers are of another class or geometry than when they were saved."""
    changes = []
    for name in own:
        before, now = saved.get(name, {}), own[name]
        differing = [key for key in now if key != "grad" and before.get(key) != now[key]]
        if differing:
            key = "type" if "type" in differing else differing[0]
            changes.append(f"{key} of {name or 'the model'} is {now[key]}, saved {before.get(key)}")
    return changes


def _line(error: BaseException) -> str:
    """Return the first line of an error's text."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
