"""The table as CSV and Markdown. Numbers come from `results`; nothing is measured here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchadder.atomic import write_atomically
from torchadder.energy.report import short_number
from torchadder.provenance import provenance
from torchadder.report.page import duration, energy
from torchadder.reproduce import sheets
from torchadder.reproduce.results import Line, Results, Source, Spread
from torchadder.reproduce.tables import Row
from torchadder.training.recipe import Recipe
from torchadder.wording import counted

NONE = "-"

PAGE = "table.md"


def write_csv(folder: Path, results: Results) -> None:
    """Writes `table.csv`, one line for each row and budget, and `runs.csv`, one for each run.

    Accuracies and differences are in percent and percentage points, energy in pJ; what is not
    known is empty.
    """
    write_atomically(folder / sheets.LINES, sheets.lines_text(results))
    write_atomically(folder / sheets.RUNS, sheets.runs_text(results))


def write_markdown(folder: Path, results: Results, command: str | None = None) -> None:
    """Writes `table.md`: one table for each budget, the settings, and where the numbers come from.

    Args:
        folder: Where to.
        results: What was measured.
        command: The command to state; None states that of this process.
    """
    write_atomically(folder / PAGE, markdown(results, provenance(command)))


def markdown(results: Results, origin: dict[str, Any]) -> str:
    """The page that `write_markdown` writes; `origin` is what `provenance` gives."""
    table = results.table
    parts = [f"# {table.title}", *_settings(results)]
    for epochs in results.budgets:
        parts.append(f"## {counted(epochs, 'epoch')}")
        parts.append(_markdown_table(results, results.at(epochs)))
    name = table.figure.name
    parts += [
        f"{name[0].upper()}{name[1:]} is that on the validation images after the last epoch, in "
        "percent: mean and "
        "sample standard deviation over the seeds. No epoch was chosen by it. *Gain* is the "
        "difference to the row it names, taken seed by seed, in points. Operations and energy are "
        f"those of one image{_largest(results)} (45 nm, fp32); seconds are those of one epoch of "
        "training.",
        *([table.note] if table.note else []),
        *_failures(results),
        _origin(results, origin),
    ]
    return "\n\n".join(parts) + "\n"


def _largest(results: Results) -> str:
    """Which image the operations of detectors are counted on; empty for other nets."""
    recipe = results.lines[0].runs[0].job.recipe
    if recipe.method != "detection":
        return ""
    sides = (max(recipe.detection.shorter), recipe.detection.longer)
    height, width = (-(-side // 32) * 32 for side in sides)
    return f" of {height}x{width} pixels, the largest that the nets see,"


def _augmentation(recipe: Recipe) -> str:
    if recipe.method != "detection":
        return f"augmentation {recipe.data.augment!r}"
    config = recipe.detection
    sides = ", ".join(map(str, config.shorter))
    return f"shorter side {sides}, longer at most {config.longer}, mirrored {config.flip:.0%}"


def _settings(results: Results) -> list[str]:
    """What all rows share, in one paragraph."""
    recipe = results.lines[0].runs[0].job.recipe
    data, optimizer, schedule = recipe.data, recipe.optimizer, recipe.schedule
    seeds = sorted({run.job.seed for run in results.runs})
    *smaller, largest = results.budgets
    budgets = ", ".join([*map(str, smaller), counted(largest, "epoch")])
    text = (
        f"Budget: {budgets} (by default {results.table.epochs}). "
        f"Seeds: {', '.join(map(str, seeds))}. Data: {data.source}, batches of {data.batch_size}, "
        f"{_augmentation(recipe)}. All rows see the same images in the same order with the "
        f"same augmentation; it depends on the seed alone. SGD, rate {optimizer.lr:g}, "
        f"{schedule.name} by {schedule.interval}, momentum {optimizer.momentum:g}, weight decay "
        f"{optimizer.weight_decay:g}."
    )
    changed = ", ".join(f"{key} {value}" for key, value in results.overrides.items())
    return [text, *([f"Changed for all rows: {changed}."] if changed else [])]


def _markdown_table(results: Results, lines: Sequence[Line]) -> str:
    with_top5 = any(line.row.recipe.startswith("imagenet") for line in lines)
    figure, second = results.table.figure, results.table.second
    header = ["row", figure.name, "printed", "difference", "gain", "teacher", "seeds"]
    header += ["mul", "add", "energy", "s/epoch"]
    if with_top5:
        header[2] = "printed (top-5)"
        header.insert(2, "top-5")
    if second is not None:
        header[5] = second.name  # no detector has a teacher
    rows = [header, ["---"] + ["---:"] * (len(header) - 1)]
    for line in lines:
        row, sums = line.row, line.arithmetic
        cells = [
            results.name_of(row),
            with_deviation(line.spread("accuracy")),
            _printed(row, with_top5),
            signed(line.difference),
            with_deviation(line.gain, is_signed=True),
            with_deviation(line.spread("teacher_accuracy" if second is None else "second")),
            f"{line.num_finished}/{len(line.runs)}",
            NONE if sums is None else short_number(sums.num_mul),
            NONE if sums is None else short_number(sums.num_add),
            NONE if sums is None else energy(sums.energy_pj),
            _seconds(line.spread("seconds")),
        ]
        if with_top5:
            cells.insert(2, with_deviation(line.spread("top5")))
        rows.append(cells)
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    named = {line.row.baseline for line in lines if line.gain is not None}
    if named:
        labels = {line.row.recipe: line.row.label for line in lines}
        baselines = dict.fromkeys(labels.get(name or "", name) for name in sorted(map(str, named)))
        text += f"\n\nGains are over the row {' or '.join(map(str, baselines))} of the same net."
    return text


def _printed(row: Row, with_top5: bool) -> str:
    """The paper's figure, with its top-5 accuracy in brackets."""
    if row.printed is None:
        return NONE
    top5 = row.printed.top5
    return f"{row.printed} ({top5})" if with_top5 and top5 is not None else str(row.printed)


def _failures(results: Results) -> list[str]:
    lines = [
        f"* {run.job.name}: failed after {counted(run.epochs, 'epoch')}: {run.reason}"
        for run in results.runs
        if run.stage == "failed"
    ]
    return ["Trainings that failed:\n\n" + "\n".join(lines)] if lines else []


def _origin(results: Results, origin: dict[str, Any]) -> str:
    """When, by what and on what the table was made."""
    machines = dict.fromkeys(
        _machine(run.summary["hardware"]) for run in results.runs if "hardware" in run.summary
    )
    seconds = sum(run.epochs * (run.seconds or 0) for run in results.runs)
    lines = [f"* `{origin['command']}`, {origin['date']}"]
    if results.joined:
        lines += _sources(results)
    else:
        versions = [f"{name} {version}" for name, version in origin["versions"].items()]
        lines.append(f"* {', '.join(versions)}")
    lines += [
        f"* trained on {'; '.join(machines) or 'nothing yet'}; {duration(seconds)} in all",
    ]
    printed = dict.fromkeys(line.row.printed.source for line in results.lines if line.row.printed)
    lines += [f"* printed figures: {source}" for source in printed]
    return "\n".join(lines)


def _sources(results: Results) -> list[str]:
    """Which folders a table was joined from, what their runs were made by, and what stayed out."""
    found = [run.summary["versions"] for run in results.runs if "versions" in run.summary]
    versions = dict.fromkeys(
        f"{name} {known[name]}"
        for name in ("torchadder", "torch")
        for known in found
        if name in known
    )
    names = ", ".join(_source(source, results) for source in results.joined)
    makers = f", whose runs were made by {', '.join(versions)}" if versions else ""
    return [
        f"* joined from {names}{makers}",
        *(f"* {source.say_left_out('`')}" for source in results.joined if source.left_out),
    ]


def _source(source: Source, results: Results) -> str:
    other = source.table != results.table.name
    return f"`{source.folder}`" + (f" (of the table {source.table})" if other else "")


def _machine(hardware: dict[str, Any]) -> str:
    name = sheets.device_name(hardware)
    if str(hardware.get("device", "cpu")).startswith("cuda"):
        return f"{hardware.get('num_devices', 1)} x {name}"
    threads = counted(int(hardware.get("torch_threads", 1)), "thread")
    instructions = hardware.get("instruction_set")
    return f"{name} ({f'{instructions}, ' if instructions else ''}{threads})"


def with_deviation(spread: Spread | None, *, is_signed: bool = False) -> str:
    """A mean with the standard deviation, in points, or a dash.

    >>> with_deviation(Spread((97.0, 98.0))), with_deviation(Spread((-0.5,)), is_signed=True)
    ('97.50 ± 0.71', '\u22120.50')
    """
    if spread is None:
        return NONE
    deviation = "" if spread.deviation is None else f" ± {spread.deviation:.2f}"
    return (signed(spread.mean) if is_signed else f"{spread.mean:.2f}") + deviation


def signed(points: float | None) -> str:
    """A difference in points with its sign, or a dash."""
    return NONE if points is None else f"{points:+.2f}".replace("-", "\N{MINUS SIGN}")


def _seconds(spread: Spread | None) -> str:
    return NONE if spread is None else f"{spread.mean:.3g}"
