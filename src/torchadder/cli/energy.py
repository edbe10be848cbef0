"""`torchadder energy`: what models cost side by side, or the papers' tables counted again."""

from __future__ import annotations

import csv as csv_format
import os
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import torchadder
from torchadder import checkpoint, models
from torchadder.energy import MEMORIES, EnergyReport, count
from torchadder.energy.operations import MEMORY, REQUANTISE
from torchadder.energy.papers import PRINTED, PrintedCount, deviation
from torchadder.energy.report import render_table, short_energy, short_number
from torchadder.quantize import IntegerNet

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

TORCHVISION = "torchvision."
TEXT = ("model", "layers", "input", "note")
DTYPES = ("float32", "float16", "bfloat16", "int32", "int8")


def energy(
    model: str | None = None,
    conv: str | None = None,
    input: str | None = None,
    num_classes: int | None = None,
    dtype: str | None = None,
    per_layer: bool = False,
    elementwise: bool = False,
    int8: bool = False,
    requantisation: bool = False,
    memory: str | None = None,
    csv: str | None = None,
) -> None:
    """Count multiplications, additions and energy of models, side by side.

    Without a model the tables that the papers print are counted again and shown beside the printed
    figures.

    Args:
        model: Names, separated by commas: models of torchadder, checkpoint files or run folders,
            or torchvision.NAME for any model of torchvision.
        conv: "conv" for the CNN, "adder" for the adder net, or both, separated by a comma; default
            both. A checkpoint is counted as it is.
        input: Shape of the input, such as 1,3,32,32, or 3,800,1344 for a detector; by default one
            image of the size the model is made for, or the largest that a detector resizes to.
        num_classes: Number of classes, where the model's default is not wanted.
        dtype: Take the energy for this number format: float32, float16, bfloat16, int32 or int8.
        per_layer: Show every layer.
        elementwise: Also count normalisation, activations, pooling, biases and residual sums.
        int8: What if all of it ran in int8, requantisation included: --dtype int8 and
            --requantisation.
        requantisation: Also count what makes bytes of the sums of int8 layers.
        memory: Also count the memory traffic, for sram8k, sram32k, sram1m or dram.
        csv: File to write the table to; with --per-layer the rows are layers.

    Raises:
        ValueError: if an argument is wrong.
        OSError: if the CSV file cannot be written.
    """
    if dtype and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if memory and memory not in MEMORIES:
        raise ValueError(f"memory must be one of {', '.join(MEMORIES)}, got {memory!r}")
    if int8 and dtype not in (None, "int8"):
        raise ValueError(f"int8 goes with no other dtype, got {dtype!r}")
    dtype = "int8" if int8 else dtype
    options: dict[str, Any] = {
        "dtype": getattr(torch, dtype) if dtype else None,
        "include_elementwise": elementwise,
        "include_requantisation": requantisation or int8,
        "memory": MEMORIES[memory] if memory else None,
    }
    if not model:
        given = {"conv": conv, "input": input, "num_classes": num_classes, "per_layer": per_layer}
        if any(given.values()):
            names = ", ".join(f"--{name.replace('_', '-')}" for name in given if given[name])
            raise ValueError(f"{names} needs --model; known are {', '.join(models.MODELS)}")
        _show_papers(options, csv)
        return
    shape = _parse_shape(input) if input else None
    kinds = _split(conv) or ["conv", "adder"]
    for kind in kinds:
        if kind not in models.CONVOLUTIONS:
            raise ValueError(f"conv must be {' or '.join(models.CONVOLUTIONS)}, got {kind!r}")
    names = _split(model)
    if not names:
        raise ValueError(f"model must be at least one name, got {model!r}")
    reports: list[tuple[str, tuple[int, ...], EnergyReport]] = []
    for name in names:
        for kind in ["as saved"] if _is_checkpoint(name) else kinds:
            net, inputs = _build(name, kind, num_classes, shape)
            reports.append((f"{name} ({kind})", inputs, count(net, _input(net, inputs), **options)))
    if per_layer:
        for title, _, report in reports:
            print(f"\n{title}\n{report}")
    print(_side_by_side(reports))
    if csv:
        _write_reports(csv, reports, per_layer)


def add_arguments(parser: ArgumentParser) -> None:
    """Declares the options of `torchadder energy`."""
    flags = {
        "--per-layer": "Show every layer.",
        "--elementwise": "Also count normalisation, activations, pooling, biases, residual sums.",
        "--int8": "What if all of it ran in int8: --dtype int8 and --requantisation.",
        "--requantisation": "Also count what makes bytes of the sums of int8 layers.",
    }
    skipped: set[str | int] = {
        "per_layer", "elementwise", "int8", "requantisation", "num_classes",
    }  # fmt: skip
    parser.add_function_arguments(energy, as_group=False, skip=skipped)
    parser.add_argument(
        "--num-classes", type=int | None, help="Number of classes, if not the model's default."
    )
    for flag, text in flags.items():
        parser.add_argument(flag, action="store_true", help=text)


def run(args: Namespace) -> None:
    """Counts and prints."""
    energy(**{name: value for name, value in args.items() if name != "config"})


def _show_papers(options: dict[str, Any], csv: str | None) -> None:
    """Count every printed row again and print the tables."""
    rows: list[dict[str, Any]] = []
    for group in dict.fromkeys(printed.group for printed in PRINTED):
        pairs = []
        for printed in PRINTED:
            if printed.group == group:
                net = _build_printed(printed)
                report = count(net, _input(net, printed.input_shape), **options)
                pairs.append((printed, report))
        print(f"\n{group}\n{_beside_print(pairs)}")
        rows += [
            {
                "group": group,
                "model": printed.model,
                "layers": printed.conv,
                "printed_mul": printed.num_mul,
                "num_mul": report.num_mul,
                "printed_add": printed.num_add,
                "num_add": report.num_add,
                "printed_energy_mj": printed.energy_mj,
                "energy_mj": report.energy_mj,
                "source": printed.source,
                "remark": printed.remark,
            }
            for printed, report in pairs
        ]
    print("\n= : comes out, at the printed number of digits; otherwise counted against printed.")
    for source in dict.fromkeys(row.source for row in PRINTED):
        print(f"Printed: {source}.")
    if csv:
        _write_csv(csv, rows)


def _beside_print(pairs: list[tuple[PrintedCount, EnergyReport]]) -> str:
    """Return the table of one group, with its remarks as notes below."""
    notes = list(dict.fromkeys(printed.remark for printed, _ in pairs if printed.remark))
    columns = ["model", "layers", "mul", "counted", "", "add", "counted", "", "energy", "counted"]
    cells = [
        (
            printed.model.removeprefix(TORCHVISION),
            printed.conv,
            printed.num_mul,
            short_number(report.num_mul),
            _percent(printed.num_mul, report.num_mul),
            printed.num_add,
            short_number(report.num_add),
            _percent(printed.num_add, report.num_add),
            f"{printed.energy_mj} mJ" if printed.energy_mj else "-",
            short_energy(report.energy_pj),
            f"({notes.index(printed.remark) + 1})" if printed.remark else "",
        )
        for printed, report in pairs
    ]
    table = render_table([*columns, "note"], cells, left=TEXT)
    return "\n".join([table, *(f"  ({i}) {note}" for i, note in enumerate(notes, start=1))])


def _side_by_side(reports: list[tuple[str, tuple[int, ...], EnergyReport]]) -> str:
    """Return one row for each model; energies relative to the first one."""
    first = reports[0][2].energy_pj
    rows = [
        [
            title,
            "x".join(map(str, inputs)),
            short_number(report.num_mul),
            short_number(report.num_add),
            f"{short_number(report.weight_bytes)}B",
            short_energy(report.energy_pj),
            f"{report.energy_pj / first:.1%}" if first else "-",
        ]
        for title, inputs, report in reports
    ]
    columns = ["model", "input", "mul", "add", "weights", "energy", "of the first"]
    # What is optional stands beside the total that it is part of.
    for op in (REQUANTISE, MEMORY):
        if any(layer.op == op for _, _, report in reports for layer in report.layers):
            columns.append(f"of it {op}")
            for row, (_, _, report) in zip(rows, reports, strict=True):
                row.append(short_energy(report.energy_pj_of(op)))
    notes = dict.fromkeys(
        f"{report.model}: counted on {report.device}: {report.note}"
        for _, _, report in reports
        if report.note
    )
    table = render_table(columns, rows, left=TEXT)
    memories = [f"memory: {reports[0][2].memory}"] if reports[0][2].memory else []
    return "\n".join([table, f"costs: {reports[0][2].costs.name}", *memories, *notes])


def _build(
    name: str, conv: str, num_classes: int | None, shape: tuple[int, ...] | None
) -> tuple[nn.Module, tuple[int, ...]]:
    """Return the model and the shape to count it with."""
    if _is_checkpoint(name):
        from torchadder.training.weights import weights_of

        net = checkpoint.load(weights_of(name))
        if num_classes is not None:
            raise ValueError(f"num_classes is fixed by the checkpoint {name}")
    elif name.startswith(TORCHVISION):
        if conv not in ("conv", "adder"):
            raise ValueError(f"conv must be conv or adder for {name}, got {conv!r}")
        net = _build_torchvision(name, num_classes)
        if conv == "adder":
            _convert(net, ("first", "last"))
    else:
        arguments: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
        if shape is not None and len(shape) == 4:
            arguments["in_channels"] = shape[1]
        net = _build_without_values(name, conv=conv, **arguments)
    if shape is None:
        if isinstance(net, IntegerNet):
            shape = (1, net.input.channels, net.input.height, net.input.width)
        elif isinstance(net, models.ImageClassifier):
            shape = (1, *net.image_shape)
        else:
            shape = _largest_image(net) if _is_detector(net) else (1, 3, 224, 224)
    return net, shape


def _build_without_values(name: str, **arguments: Any) -> nn.Module:
    with torch.device("meta"):
        return models.build(name, **arguments)


def _build_torchvision(name: str, num_classes: int | None) -> nn.Module:
    import torchvision

    plain = name.removeprefix(TORCHVISION)
    arguments: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if _takes_backbone(plain):
        arguments["weights_backbone"] = None
    try:
        return torchvision.models.get_model(plain, weights=None, **arguments)
    except ValueError as error:
        raise ValueError(f"torchvision has no model {plain!r}") from error
    except TypeError as error:
        if num_classes is None or "num_classes" not in str(error):
            raise
        message = f"num_classes = {num_classes}: torchvision's {plain} has no classes"
        raise ValueError(message) from error


def _build_printed(printed: PrintedCount) -> nn.Module:
    if not printed.model.startswith(TORCHVISION):
        return _build_without_values(printed.model, conv=printed.conv, **printed.arguments)
    net: Any = _build_torchvision(printed.model, num_classes=80)
    if "backbone" in printed.conv:
        _convert(net.backbone.body, ("first",))
    if "neck" in printed.conv:
        _convert(net.backbone.fpn, ())
    return net


def _convert(net: nn.Module, keep: tuple[str, ...]) -> None:
    with warnings.catch_warnings():
        # A layer without a norm behind it trains badly, but only its operations matter here.
        warnings.filterwarnings("ignore", message="adder layers without a normalisation")
        torchadder.convert_(net, torchadder.AdderConfig(keep=keep))


def _takes_backbone(name: str) -> bool:
    """Whether a model of torchvision is one that would fetch a backbone's weights."""
    import torchvision

    return name in torchvision.models.list_models(module=torchvision.models.detection)


def _is_detector(net: nn.Module) -> bool:
    """Whether the model is torchvision's or our detector, which resizes and pads its images."""
    return hasattr(getattr(net, "transform", None), "size_divisible")


def _largest_image(detector: Any) -> tuple[int, ...]:
    """Return the largest shape that a detector brings an image to, padding included."""
    transform = detector.transform
    sides = (transform.min_size[-1], transform.max_size)
    multiple = transform.size_divisible
    return (3, *(-(-side // multiple) * multiple for side in sides))


def _input(net: nn.Module, shape: tuple[int, ...]) -> Any:
    """Return the argument of the model: detectors take a list of images."""
    if not _is_detector(net):
        return shape
    return [shape] if len(shape) == 3 else [shape[1:]] * shape[0]


def _is_checkpoint(name: str) -> bool:
    """Whether a name means a file or a run folder; a model's name always means the model."""
    known = name in models.MODELS or name.startswith(TORCHVISION)
    return not known and (name.endswith(".safetensors") or os.path.isdir(name))


def _parse_shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in text.replace("x", ",").split(","))
    except ValueError as error:
        raise ValueError(f"input must be a shape such as 1,3,32,32, got {text!r}") from error
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise ValueError(f"input must be 3 or 4 sizes of at least 1, got {text!r}")
    return shape


def _split(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _percent(printed: str, counted: float) -> str:
    if float(printed.rstrip("KMG")) == 0:
        return "-" if counted else "="
    part = deviation(printed, counted)
    return f"{part:+.2%}" if part else "="


def _write_reports(
    path: str, reports: list[tuple[str, tuple[int, ...], EnergyReport]], per_layer: bool
) -> None:
    rows: list[dict[str, Any]] = []
    for title, inputs, report in reports:
        totals = report.to_dict()
        layers = totals.pop("layers")
        head = {"model": title, "input": "x".join(map(str, inputs))}
        if per_layer:
            rows += [
                {**head, **layer, "output_shape": "x".join(map(str, layer["output_shape"]))}
                for layer in layers
            ]
        else:
            rows.append({**totals, **head})
    _write_csv(path, rows)


def _write_csv(path: str, rows: Iterable[dict[str, Any]]) -> None:
    rows = list(rows)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv_format.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
