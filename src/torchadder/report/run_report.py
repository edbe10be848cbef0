"""The page of one run: what was trained, how it went, what the net knows and what it costs."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from torchadder.data import ImageData
from torchadder.energy import EnergyReport, count
from torchadder.energy.report import short_number
from torchadder.report import exhibits, sentences
from torchadder.report.evaluation import Predictions, predict
from torchadder.report.exhibits import KINDS, FittedLayer
from torchadder.report.page import Cell, Table, duration, energy, percent, write_page
from torchadder.report.run_folder import RunFolder, read_run
from torchadder.report.statistics import wilson_interval

MAX_IMAGES = 10_000
"""Validation images that the confusion matrix is made from; more say nothing new about a net."""

SECTIONS = {
    "results": "Results",
    "curves": "Learning curves",
    "mistakes": "Mistakes",
    "weights": "Weights",
    "energy": "Arithmetic, layer by layer",
    "provenance": "Where these numbers come from",
}


def write_run_report(
    folder: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    data: ImageData | None = None,
) -> Path:
    """Writes `report.html` and its figures into the folder of a finished run.

    The net is measured with the weights of its best epoch, on at most 10,000 validation images,
    where the run computed (on the CPU if that device is gone). A report that is there already is
    replaced: it is made from the run alone.

    Args:
        folder: The run folder.
        model: The net with the best epoch's weights; None reads them from the folder.
        data: The images of the run; None opens them again.

    Returns:
        The path of the page.

    Raises:
        ValueError: If the folder holds no finished run, or its images cannot be used.
    """
    run = read_run(folder)
    model = run.load_model("best") if model is None else model
    data = run.open_data() if data is None else data
    predictions = predict(
        model,
        data,
        max_images=MAX_IMAGES,
        num_mistakes=exhibits.NUM_MISTAKES,
        device=run.device,
    )
    model.cpu()
    report = count(model, (1, *data.image_shape))
    layers = exhibits.fit_layers(model)
    kind, names = run.kind, data.class_names
    return write_page(
        "run.html.jinja",
        run.path / "report.html",
        **exhibits.frame(_title(run), _lede(run, predictions, report), run.summary["date"]),
        sections=SECTIONS if layers else {k: v for k, v in SECTIONS.items() if k != "weights"},
        result_table=_result_table(run, predictions, report),
        result_sentences=_selection_sentences(run, len(data.val)),
        curves=exhibits.draw_curves(run.path, exhibits.curves_of(run)),
        distillation=exhibits.draw_distillation(run.path, run),
        alignment=exhibits.draw_alignment(run.path, run),
        confusion=exhibits.draw_confusion(run.path, predictions, kind, names),
        mistakes=exhibits.draw_mistakes(run.path, predictions, kind, names),
        weights=exhibits.draw_weights(run.path, {kind: layers}) if layers else None,
        weight_sentences=_weight_sentences(kind, layers),
        weight_table=exhibits.weight_table({kind: layers}),
        energy_table=exhibits.energy_table({kind: report}),
        energy_sentences=[exhibits.energy_note({kind: report})],
        facts=exhibits.facts(
            run.summary,
            data,
            command=run.summary["command"],
            seconds=run.summary["seconds"],
            date=run.summary["date"],
        )
        | {"Recipe": run.config["name"], "Epochs": f"{run.epochs} of {run.config['epochs']}"},
    )


def _title(run: RunFolder) -> str:
    return f"{run.config['model']['name']} on {Path(run.config['data']['source']).name}"


def _lede(run: RunFolder, predictions: Predictions, report: EnergyReport) -> str:
    num_images = len(predictions.labels)
    what = KINDS[run.kind].name.capitalize()
    return (
        f"{what} gets {percent(predictions.accuracy, num_images)} of {num_images:,} validation "
        f"images right. One image costs {short_number(report.num_mul)} multiplications and "
        f"{short_number(report.num_add)} additions, {energy(report.energy_pj)} of arithmetic."
    )


def _result_table(run: RunFolder, predictions: Predictions, report: EnergyReport) -> Table:
    num_images = len(predictions.labels)
    interval = wilson_interval(predictions.num_correct, num_images)
    last, metrics = run.rows[-1], run.summary["metrics"]
    rows: list[tuple[str, str]] = [
        (
            f"Accuracy of the best epoch, {num_images:,} images",
            percent(predictions.accuracy, num_images),
        ),
        ("95 % interval (Wilson)", exhibits.interval_text(interval, num_images)),
        ("Best epoch", f"{metrics['best_epoch']:.0f} of {run.epochs}"),
        ("Validation accuracy, last epoch", percent(last["val_accuracy"], num_images)),
        ("Validation loss, last epoch", f"{last['val_loss']:.4f} nats"),
        ("Training accuracy, last epoch", percent(last["train_accuracy"], num_images)),
    ]
    if "val_top5" in last:
        rows.append(("Top-5 accuracy, last epoch", percent(last["val_top5"], num_images)))
    if "teacher_val_accuracy" in last:
        rows.append(
            ("Teacher's accuracy, last epoch", percent(last["teacher_val_accuracy"], num_images))
        )
    rows += [
        ("Multiplications of one image", short_number(report.num_mul)),
        ("Additions of one image", short_number(report.num_add)),
        ("Energy of one image", energy(report.energy_pj)),
        ("Weights", f"{short_number(report.weight_bytes)}B"),
        ("Time of an epoch", duration(run.summary["seconds_per_epoch"])),
    ]
    marked = [(Cell(rows[0][0], run.kind), rows[0][1]), *rows[1:]]
    return Table("What the run came to.", ("Quantity", ">Value"), marked)


def _selection_sentences(run: RunFolder, num_images: int) -> list[str]:
    gain = run.summary["metrics"]["best_val_accuracy"] - run.rows[-1]["val_accuracy"]
    if gain <= 0:
        return ["No epoch is better than the last, so choosing the best one flatters nothing."]
    return [
        "The best epoch was chosen by the same validation images that its accuracy is taken on, "
        f"which flatters it a little; the last epoch is {100 * gain:.2f} points lower and was not "
        f"chosen by anything ({num_images:,} validation images)."
    ]


def _weight_sentences(kind: str, layers: list[FittedLayer]) -> list[str]:
    adder = [item.fits for item in layers if item.layer.is_adder]
    other = [item.fits for item in layers if not item.layer.is_adder]
    name = KINDS[kind].name
    found: list[str] = []
    if adder:
        found.append(sentences.fits_sentence(f"adder layers of {name}", adder))
    if other:
        found.append(sentences.fits_sentence(f"multiplying layers of {name}", other))
    return found
