"""Reading the state dicts that the authors of AdderNet released.

Only names and shapes are translated here. Their files are pickles: read them with
`torch.load(path, weights_only=True)`, convert, and store the result with `torchadder.save`.
"""

from collections.abc import Mapping

from torch import Tensor, nn


def convert_state_dict(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename the entries of a published AdderNet state dict to those of `model`.

    The released nets share this package's module names and differ in three points: the filters of
    an adder layer are called `adder` (here `weight`) and its bias `b` (here `bias`), and
    `nn.DataParallel` has put `module.` in front of every name. BN counters
    (`num_batches_tracked`), which files of old torch versions lack, are taken from `model`.
    The released ResNet-50 has its stride in the 3x3 layers: `resnet50(stride_in_1x1=False)`.

    Args:
        state_dict: names and tensors as released.
        model: the net to be loaded, for instance `torchadder.models.resnet20()`.

    Returns:
        A state dict for `model.load_state_dict`; the tensors are those of `state_dict`.

    Raises:
        ValueError: if names are missing, unexpected or ambiguous, or a shape differs.

    >>> import torch
    >>> layer = nn.Conv2d(1, 2, 3, bias=False)
    >>> list(convert_state_dict({"module.adder": torch.zeros(2, 1, 3, 3)}, layer))
    ['weight']
    """
    prefix = "module."
    names = list(state_dict)
    if names and all(name.startswith(prefix) for name in names):
        state_dict = {name.removeprefix(prefix): tensor for name, tensor in state_dict.items()}

    converted: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        new_name = _rename(name, state_dict)
        if new_name in converted:
            raise ValueError(f"published state dict holds {new_name!r} under two names")
        converted[new_name] = tensor

    wanted = model.state_dict()
    for name, tensor in wanted.items():
        if name.rpartition(".")[2] == "num_batches_tracked":
            converted.setdefault(name, tensor)
    problems = difference(converted, wanted)
    if problems:
        raise ValueError(
            f"published state dict does not fit {type(model).__name__}: {'; '.join(problems)}"
        )
    return {name: converted[name] for name in wanted}


def difference(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], limit: int = 5
) -> list[str]:
    """Say in words how the names and shapes of `found` differ from those of `wanted`.

    Args:
        found: state dict at hand.
        wanted: state dict of the model.
        limit: how many names of each kind are spelt out.

    Returns:
        One phrase for each kind of difference; empty if there is none.
    """

    def listed(names: list[str]) -> str:
        more = f" and {len(names) - limit} more" if len(names) > limit else ""
        return ", ".join(names[:limit]) + more

    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    shapes = [
        f"{name} is {list(found[name].shape)} instead of {list(wanted[name].shape)}"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    phrases = [
        f"missing {listed(missing)}" if missing else "",
        f"unexpected {listed(unexpected)}" if unexpected else "",
        f"shape of {listed(shapes)}" if shapes else "",
    ]
    return [phrase for phrase in phrases if phrase]


def _rename(name: str, state_dict: Mapping[str, Tensor]) -> str:
    """Return this package's name of the published entry `name`."""
    module, dot, leaf = name.rpartition(".")
    if leaf == "adder":
        return f"{module}{dot}weight"
    if leaf == "b" and f"{module}{dot}adder" in state_dict:
        return f"{module}{dot}bias"
    return name
