"""The table as CSV and Markdown. Numbers come from `results`; nothing is measured here."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchadder.atomic import write_atomically
from torchadder.energy.report import short_number
from torchadder.provenance import provenance
from torchadder.report.page import duration, energy
from torchadder.reproduce.results import Line, Results, Run, Spread
from torchadder.training.recipe import Recipe
from torchadder.wording import counted

NONE = "-"


def write_csv(folder: Path, results: Results) -> None:
    """Writes `table.csv`, one line for each row and budget, and `runs.csv`, one for each run.

    Accuracies and differences are in percent and percentage points, energy in pJ; what is not
    known is empty.
    """
    lines = [_line_values(results, line) for line in results.lines]
    write_atomically(folder / "table.csv", _csv(lines))
    write_atomically(folder / "runs.csv", _csv([_run_values(run) for run in results.runs]))


def write_markdown(folder: Path, results: Results, command: str | None = None) -> None:
    """Writes `table.md`: one table for each budget, the settings, and where the numbers come from.

    Args:
        folder: Where to.
        results: What was measured.
        command: The command to state; None states that of this process.
    """
    write_atomically(folder / "table.md", markdown(results, provenance(command)))


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
    budgets = ", ".join(str(epochs) for epochs in results.budgets)
    text = (
        f"Budget: {budgets} epochs (by default {results.table.epochs}). "
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
        header.insert(2, "top-5")
    if second is not None:
        header[5] = second.name  # no detector has a teacher
    rows = [header, ["---"] + ["---:"] * (len(header) - 1)]
    for line in lines:
        row, sums = line.row, line.arithmetic
        cells = [
            results.name_of(row),
            with_deviation(line.spread("accuracy")),
            NONE if row.printed is None else str(row.printed),
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
        sources = ", ".join(f"`{folder}`" for folder in results.joined)
        found = [run.summary["versions"] for run in results.runs if "versions" in run.summary]
        versions = dict.fromkeys(
            f"{name} {known[name]}" for name in ("torchadder", "torch") for known in found
        )
        lines.append(f"* joined from {sources}, whose runs were made by {', '.join(versions)}")
    else:
        versions = [f"{name} {version}" for name, version in origin["versions"].items()]
        lines.append(f"* {', '.join(versions)}")
    lines += [
        f"* trained on {'; '.join(machines) or 'nothing yet'}; {duration(seconds)} in all",
    ]
    printed = dict.fromkeys(line.row.printed.source for line in results.lines if line.row.printed)
    lines += [f"* printed figures: {source}" for source in printed]
    return "\n".join(lines)


def _machine(hardware: dict[str, Any]) -> str:
    device = str(hardware.get("device", "cpu"))
    if device.startswith("cuda"):
        return f"{hardware.get('num_devices', 1)} x {hardware.get('gpu')}"
    threads = counted(int(hardware.get("torch_threads", 1)), "thread")
    instructions = hardware.get("instruction_set")
    return f"{hardware.get('cpu')} ({f'{instructions}, ' if instructions else ''}{threads})"


def _line_values(results: Results, line: Line) -> dict[str, Any]:
    row, sums = line.row, line.arithmetic
    accuracy, best = line.spread("accuracy"), line.spread("best_accuracy")
    top5, teacher = line.spread("top5"), line.spread("teacher_accuracy")
    seconds = line.spread("seconds")
    key, second = results.table.figure.key, results.table.second
    other = line.spread("second")
    return {
        "table": results.table.name,
        "net": row.group,
        "row": row.key,
        "label": row.label,
        "recipe": row.recipe,
        "epochs": line.epochs,
        "seeds": len(line.runs),
        "finished": line.num_finished,
        key: accuracy and accuracy.mean,
        f"{key}_deviation": accuracy and accuracy.deviation,
        f"{key}_lowest": accuracy and min(accuracy.values),
        f"{key}_highest": accuracy and max(accuracy.values),
        f"best_{key}": best and 100 * best.mean,
        **({} if second is None else {second.key: other and other.mean}),
        "top5": top5 and top5.mean,
        "printed": row.printed and row.printed.accuracy,
        "difference": line.difference,
        "baseline": row.baseline,
        "gain": line.gain and line.gain.mean,
        "gain_deviation": line.gain and line.gain.deviation,
        "teacher_accuracy": teacher and teacher.mean,
        "num_mul": sums and sums.num_mul,
        "num_add": sums and sums.num_add,
        "energy_pj": sums and sums.energy_pj,
        "seconds_per_epoch": seconds and seconds.mean,
        "status": line.status,
    }


def _run_values(run: Run) -> dict[str, Any]:
    hardware = run.summary.get("hardware", {})
    return {
        "row": run.job.row.key,
        "recipe": run.job.row.recipe,
        "epochs": run.job.epochs,
        "seed": run.job.seed,
        "status": run.stage if not run.reason else f"{run.stage}: {run.reason}",
        "finished_epochs": run.epochs,
        run.figure.key: run.accuracy,
        f"best_{run.figure.key}": None if run.best_accuracy is None else 100 * run.best_accuracy,
        **({} if run.other is None else {run.other.key: run.second}),
        "top5": run.top5,
        "teacher_accuracy": run.teacher_accuracy,
        "train_accuracy": _percent(run.metrics.get("train_accuracy")),
        "val_loss": run.metrics.get("val_loss"),
        "seconds_per_epoch": run.seconds,
        "date": run.summary.get("date"),
        "device": hardware.get("gpu") or hardware.get("cpu"),
        "threads": hardware.get("torch_threads"),
        "torch": run.summary.get("versions", {}).get("torch"),
        "torchadder": run.summary.get("versions", {}).get("torchadder"),
    }


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _plain(value) for key, value in row.items()} for row in rows)
    return buffer.getvalue()


def _plain(value: Any) -> Any:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


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
