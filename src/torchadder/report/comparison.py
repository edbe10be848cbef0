"""The page that compares a CNN, an adder net and a distilled adder net on the same images."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torchadder.data import ImageData
from torchadder.energy import EnergyReport, count
from torchadder.energy.report import short_number
from torchadder.report import exhibits, figures, sentences
from torchadder.report.evaluation import Predictions, predict
from torchadder.report.exhibits import KINDS, FittedLayer
from torchadder.report.figures import Cloud
from torchadder.report.page import (
    Cell,
    Picture,
    Table,
    duration,
    energy,
    percent,
    write_page,
)
from torchadder.report.run_folder import RunFolder, read_run
from torchadder.report.statistics import radial_share, wilson_interval
from torchadder.wording import counted

SECTIONS = {
    "results": "Results",
    "curves": "Learning curves",
    "features": "Features in two dimensions",
    "weights": "Weights",
    "mistakes": "Mistakes of the adder net",
    "energy": "Arithmetic, layer by layer",
    "provenance": "Where these numbers come from",
}


@dataclass(frozen=True)
class Result:
    """One net of a comparison, measured with its last epoch's weights.

    Attributes:
        run: Its run.
        predictions: What it says about the validation images.
        energy: What one image costs it.
        layers: Its layers' weights and the distributions fitted to them.
    """

    run: RunFolder
    predictions: Predictions
    energy: EnergyReport
    layers: list[FittedLayer]

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy that so many images allow."""
        return wilson_interval(self.predictions.num_correct, len(self.predictions.labels))


@dataclass(frozen=True)
class CloudResult:
    """A net with two-dimensional features.

    Attributes:
        run: Its run.
        predictions: What it says about the validation images, with features.
        radial_share: See `statistics.radial_share`.
    """

    run: RunFolder
    predictions: Predictions
    radial_share: float | None


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        page: The HTML page.
        results: One result for each kind of net: "conv", "adder", "pkkd".
        summary: What `summary.json` beside the page holds.
    """

    page: Path
    results: dict[str, Result]
    summary: dict[str, Any]


def write_comparison(
    folder: Path,
    runs: Mapping[str, Path],
    clouds: Mapping[str, Path],
    data: ImageData,
    *,
    title: str,
    start: float,
) -> Comparison:
    """Measures finished runs and writes `report.html`, `summary.json` and the figures.

    Every net is measured with its last epoch's weights: no epoch is chosen on the images that the
    accuracies are taken on.

    Args:
        folder: An existing folder, for the page.
        runs: Run folders of the kinds "conv", "adder" and "pkkd", trained on `data`.
        clouds: Run folders of nets with two-dimensional features, of the kinds "conv" and "adder".
        data: The images.
        title: Headline of the page.
        start: `time.monotonic()` when the work began that the page shows.

    Raises:
        ValueError: If a run folder is incomplete.
    """
    results = {kind: _measure(path, data) for kind, path in runs.items()}
    cloud_results = {kind: _measure_cloud(path, data) for kind, path in clouds.items()}
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    seconds = time.monotonic() - start
    summary = _summary(results, cloud_results, data, title, seconds, date)
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    (folder / "summary.json").write_text(text, encoding="utf-8")

    conv, adder, pkkd = (results[kind] for kind in ("conv", "adder", "pkkd"))
    names = data.class_names
    reports = {kind: result.energy for kind, result in results.items() if kind != "pkkd"}
    layers = {kind: _inner_layers(result, adder) for kind, result in results.items()}
    compared = {
        (kind, other): sentences.accuracy_sentence(
            KINDS[kind].name,
            results[kind].predictions.is_correct,
            KINDS[other].name,
            results[other].predictions.is_correct,
        )
        for kind, other in (("adder", "conv"), ("pkkd", "adder"))
    }
    arithmetic = sentences.energy_sentence(
        KINDS["adder"].name, adder.energy, KINDS["conv"].name, conv.energy
    )
    curves = [
        curve
        for result in results.values()
        for curve in exhibits.curves_of(result.run, with_teacher=False)
    ]
    page = write_page(
        "comparison.html.jinja",
        folder / "report.html",
        **exhibits.frame(title, _lede(results), date),
        sections=SECTIONS,
        result_table=_result_table(results),
        result_sentences=[*compared.values(), arithmetic, _caution(results, data)],
        curves=exhibits.draw_curves(folder, curves),
        curve_sentences=sentences.trailing_sentences(KINDS["adder"].name, adder.run.rows),
        distillation=exhibits.draw_distillation(folder, pkkd.run),
        clouds=_draw_clouds(folder, cloud_results, names),
        cloud_sentences=[_cloud_accuracies(cloud_results), _cloud_sentence(cloud_results)],
        weights=exhibits.draw_weights(folder, {kind: layers[kind] for kind in ("conv", "adder")}),
        weight_sentences=sentences.weight_sentences(
            [item.fits for item in layers["conv"]],
            [item.fits for item in layers["adder"]],
            adder.run.epochs,
        ),
        weight_table=exhibits.weight_table(layers),
        confusion=exhibits.draw_confusion(folder, adder.predictions, "adder", names),
        mistakes=exhibits.draw_mistakes(folder, adder.predictions, "adder", names),
        energy_table=exhibits.energy_table(reports),
        energy_sentences=[exhibits.energy_note(reports)],
        facts=exhibits.facts(
            conv.run.summary, data, command=summary["command"], seconds=seconds, date=date
        )
        | {"Epochs": str(conv.run.epochs)},
    )
    return Comparison(page, results, summary)


def _measure(path: Path, data: ImageData) -> Result:
    run = read_run(path)
    model = run.load_model("last")
    return Result(
        run=run,
        predictions=predict(model, data, num_mistakes=exhibits.NUM_MISTAKES),
        energy=count(model, (1, *data.image_shape)),
        layers=exhibits.fit_layers(model),
    )


def _measure_cloud(path: Path, data: ImageData) -> CloudResult:
    run = read_run(path)
    predictions = predict(run.load_model("last"), data, with_features=True)
    assert predictions.features is not None
    return CloudResult(run, predictions, radial_share(predictions.features, predictions.labels))


def _inner_layers(result: Result, adder: Result) -> list[FittedLayer]:
    """The layers that are adder layers in the adder net, also in a net where they are not."""
    names = {item.layer.name for item in adder.layers if item.layer.is_adder}
    return [item for item in result.layers if item.layer.name in names]


def _summary(
    results: Mapping[str, Result],
    clouds: Mapping[str, CloudResult],
    data: ImageData,
    title: str,
    seconds: float,
    date: str,
) -> dict[str, Any]:
    first = next(iter(results.values())).run
    return {
        "title": title,
        "date": date,
        "command": first.summary["command"],
        "seconds": round(seconds, 3),
        "seed": first.summary["seed"],
        "epochs": first.epochs,
        "data": {"source": data.source, "train": len(data.train), "validation": len(data.val)},
        "nets": {kind: _net_summary(result) for kind, result in results.items()},
        "features": {
            kind: {
                "folder": cloud.run.path.name,
                "accuracy": cloud.predictions.accuracy,
                "radial_share": cloud.radial_share,
                "seconds": cloud.run.summary["seconds"],
            }
            for kind, cloud in clouds.items()
        },
        "hardware": first.summary["hardware"],
        "versions": first.summary["versions"],
    }


def _net_summary(result: Result) -> dict[str, Any]:
    return {
        "folder": result.run.path.name,
        "accuracy": result.predictions.accuracy,
        "accuracy_interval": list(result.interval),
        "num_mul": result.energy.num_mul,
        "num_add": result.energy.num_add,
        "energy_pj": result.energy.energy_pj,
        "seconds": result.run.summary["seconds"],
        "weights": {
            item.layer.name: {
                "laplace": asdict(item.fits.laplace),
                "normal": asdict(item.fits.normal),
                "better": item.fits.better,
            }
            for item in result.layers
        },
    }


def _lede(results: Mapping[str, Result]) -> str:
    accuracies = {
        kind: percent(result.predictions.accuracy, len(result.predictions.labels))
        for kind, result in results.items()
    }
    conv, adder = results["conv"], results["adder"]
    epochs = conv.run.epochs
    return (
        f"After {counted(epochs, 'epoch')} the CNN gets {accuracies['conv']} "
        f"of the validation images right, the adder net {accuracies['adder']}, and the adder net "
        f"that was distilled from a CNN {accuracies['pkkd']}. The arithmetic of one image takes "
        f"{energy(conv.energy.energy_pj)} in the CNN and {energy(adder.energy.energy_pj)} in the "
        "adder nets."
    )


def _caution(results: Mapping[str, Result], data: ImageData) -> str:
    seed = results["conv"].run.summary["seed"]
    epochs = results["conv"].run.epochs
    return (
        f"All of this is one seed ({seed}), {len(data.train):,} training images and "
        f"{counted(epochs, 'epoch')}: enough to see that everything works, not to rank "
        "methods. The accuracies are those of the last epoch, so that no epoch was chosen on the "
        "validation images."
    )


def _result_table(results: Mapping[str, Result]) -> Table:
    rows = []
    for kind, result in results.items():
        num_images = len(result.predictions.labels)
        rows.append(
            (
                Cell(KINDS[kind].label, kind),
                percent(result.predictions.accuracy, num_images),
                exhibits.interval_text(result.interval, num_images),
                short_number(result.energy.num_mul),
                short_number(result.energy.num_add),
                energy(result.energy.energy_pj),
                duration(result.run.summary["seconds"]),
            )
        )
    columns = (
        "Net",
        ">Accuracy",
        ">95 % interval",
        ">Multiplications",
        ">Additions",
        ">Energy",
        ">Training",
    )
    return Table(
        "Validation accuracy, and what one image costs in inference. The interval is Wilson's, for "
        "so many images.",
        columns,
        rows,
    )


def _draw_clouds(
    folder: Path, clouds: Mapping[str, CloudResult], class_names: list[str]
) -> Picture:
    panels = []
    for kind, cloud in clouds.items():
        assert cloud.predictions.features is not None
        panels.append(
            Cloud(KINDS[kind].label, cloud.predictions.features, cloud.predictions.labels)
        )
    num_images = len(panels[0].labels)
    return exhibits.draw(
        folder,
        "features",
        figures.feature_clouds,
        panels,
        class_names,
        alt=f"The {num_images:,} validation images as points in the plane of the two features, "
        "coloured by class, for the CNN and for the adder net.",
        caption=f"The {num_images:,} validation images in the two features that the last layer "
        "sees, in nets trained with only two of them. Each panel has its own scale, the same "
        "along both axes.",
    )


def _cloud_accuracies(clouds: Mapping[str, CloudResult]) -> str:
    conv, adder = clouds["conv"].predictions, clouds["adder"].predictions
    num_images = len(conv.labels)
    return (
        "These two nets are separate ones, with a layer of two units before the classifier; the "
        "adder net's classifier is an adder layer, too, so that it decides by distances. With two "
        f"features the CNN gets {percent(conv.accuracy, num_images)} of the images right, the "
        f"adder net {percent(adder.accuracy, num_images)}."
    )


def _cloud_sentence(clouds: Mapping[str, CloudResult]) -> str:
    return sentences.cloud_sentence(clouds["conv"].radial_share, clouds["adder"].radial_share)
