"""`torchadder demo`: a CNN, an adder net and a distilled adder net on real digits, side by side."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchadder import recipes
from torchadder.training.recipe import Recipe

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser
    from rich.table import Table

    from torchadder.report import Comparison

OUTPUT = "runs/demo"
EPOCHS = 12
THREADS = 1
"""With nets this small, more threads mostly wait for each other, badly so on a busy machine."""
TITLE = "CNN, adder net and distilled adder net on real digits"

RECIPES = {
    "conv": "mnist_lenet5bn_conv",
    "adder": "mnist_lenet5bn_adder",
    "pkkd": "mnist_lenet5bn_pkkd",
}
"""Kind of net and its recipe."""

CLOUD_ARGUMENTS: dict[str, dict[str, Any]] = {
    "conv": {"feature_dim": 2},
    "adder": {"feature_dim": 2, "head": "adder"},
}
"""Kind of net and what gives it features that can be drawn. The adder net's classifier is an adder
layer, too: figure 1 of the AdderNet paper (arXiv 1912.13200) is about deciding by distances."""

WORDS = {
    "conv": "CNN",
    "adder": "adder net",
    "pkkd": "adder net, distilled from a CNN (PKKD)",
    "conv_2d": "CNN with two features, for the figure",
    "adder_2d": "adder net with two features, for the figure",
}


def add_arguments(parser: ArgumentParser) -> None:
    """Declares the options of `torchadder demo`."""
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="Epochs of each training.")
    parser.add_argument(
        "--output",
        type=str,
        default=OUTPUT,
        help="Folder to write to; if it is not empty, a new one is made by adding a number.",
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of everything random.")
    parser.add_argument("--threads", type=int, default=THREADS, help="Threads of torch.")


def run(args: Any) -> None:
    """Trains five small nets, writes the page and prints the comparison."""
    start = time.monotonic()
    jobs = plan(epochs=args.epochs, seed=args.seed, threads=args.threads)

    from torchadder.report import write_comparison
    from torchadder.training import fit

    folder = new_folder(Path(args.output))
    if folder != Path(args.output):
        print(f"{args.output} is not empty and stays as it is; this demo goes to {folder}")
    data = None
    for number, (name, recipe) in enumerate(jobs.items(), 1):
        print(f"\n[{number}/{len(jobs)}] {WORDS[name]}", flush=True)
        data = fit(recipe, output=folder / name).data
    assert data is not None
    print("\nmeasuring and drawing ...", flush=True)
    comparison = write_comparison(
        folder,
        runs={kind: folder / kind for kind in RECIPES},
        clouds={kind: folder / f"{kind}_2d" for kind in CLOUD_ARGUMENTS},
        data=data,
        title=TITLE,
        start=start,
    )
    show(comparison)


def plan(*, epochs: int, seed: int, threads: int) -> dict[str, Recipe]:
    """The trainings of the demo by the names of their folders.

    Args:
        epochs: Epochs of each.
        seed: Seed of each.
        threads: Threads of torch.

    Raises:
        RecipeError: If a value is out of range.
    """
    common = {"epochs": epochs, "seed": seed, "trainer.threads": threads}
    jobs = {kind: recipes.load(name, common) for kind, name in RECIPES.items()}
    for kind, arguments in CLOUD_ARGUMENTS.items():
        own = {"name": f"{RECIPES[kind]}_2d", "model.kwargs": arguments}
        jobs[f"{kind}_2d"] = recipes.load(RECIPES[kind], common | own)
    return jobs


def new_folder(wanted: Path) -> Path:
    """Makes the folder `wanted`, or where that holds files `wanted-2`, `wanted-3` ...

    Raises:
        OSError: If the folder cannot be made.
    """
    if wanted.is_dir() and not any(wanted.iterdir()):
        return wanted
    for number in itertools.count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError


def show(comparison: Comparison) -> None:
    """Prints the comparison as a table, and where the page is."""
    from rich.console import Console

    console = Console()
    console.print()
    console.print(table(comparison))
    console.print(f"report: {comparison.page}", highlight=False, soft_wrap=True)


def table(comparison: Comparison) -> Table:
    """Accuracy, arithmetic and energy of the nets, side by side."""
    from rich import box
    from rich.table import Table

    from torchadder.energy.report import short_number
    from torchadder.report.exhibits import KINDS
    from torchadder.report.page import duration, energy, percent

    num_images = comparison.summary["data"]["validation"]
    result = Table(box=box.SIMPLE_HEAD, title=f"{num_images:,} validation images, one image's cost")
    result.add_column("net")
    for name in ("accuracy", "mul", "add", "energy", "training"):
        result.add_column(name, justify="right", no_wrap=True)
    for kind, net in comparison.summary["nets"].items():
        result.add_row(
            KINDS[kind].label,
            percent(net["accuracy"], num_images),
            short_number(net["num_mul"]),
            short_number(net["num_add"]),
            energy(net["energy_pj"]),
            duration(net["seconds"]),
        )
    return result
