"""The options and the output of `torchadder evaluate --robust`."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchadder.cli import UserError
from torchadder.cli.demo import new_folder

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from torchadder.robustness.evaluation import Progress

QUICK = {"strong_iterations": 20, "restarts": 1, "queries": 100}
"""What a short evaluation takes less of than `torchadder.robustness.evaluate`."""

QUICK_EPSILONS = (4 / 255, 16 / 255, 64 / 255, 128 / 255)

_OPTIONS = (
    "images",
    "epsilon",
    "step",
    "attacks",
    "statistics",
    "gradients",
    "strong_iterations",
    "restarts",
    "queries",
    "transfer",
    "seed",
    "output",
)


def add_arguments(parser: ArgumentParser) -> None:
    """Declares the options that come with `--robust`."""
    parser.add_argument(
        "--robust", action="store_true", help="Attack the net, and look for gradient masking."
    )
    parser.add_argument(
        "--full", action="store_true", help="PGD-50 with 5 restarts, Square-1000, all radii."
    )
    parser.add_argument(
        "--images", type=int | None, help="Images to attack (default: 200, or all)."
    )
    parser.add_argument(
        "--first", action="store_true", help="Take the first images, not a random sample."
    )
    parser.add_argument(
        "--epsilon", type=str | float | None, help="Largest change of a pixel (default: 8/255)."
    )
    parser.add_argument(
        "--step", type=str | float | None, help="Change in an iteration (default: epsilon / 4)."
    )
    parser.add_argument(
        "--attacks",
        type=str | None,
        help="Rows, with commas between them: clean, fgsm, bim7, pgd7, mim5, rfgsm5, pgd50, "
        "square, transfer (default: all).",
    )
    parser.add_argument(
        "--statistics", type=str | None, help="Batch norm: running, batch (default: both)."
    )
    parser.add_argument(
        "--gradients", type=str | None, help="surrogate, sign; a CNN: true (default: all)."
    )
    parser.add_argument(
        "--strong_iterations", type=int | None, help="Iterations of the strong PGD (20; full: 50)."
    )
    parser.add_argument("--restarts", type=int | None, help="Its random starts (1; full: 5).")
    parser.add_argument("--queries", type=int | None, help="Queries of Square (100; full: 1000).")
    parser.add_argument(
        "--transfer", type=str | None, help="Checkpoint of a net whose images are tried on this."
    )
    parser.add_argument("--seed", type=int | None, help="Seed of everything random (default: 0).")
    parser.add_argument(
        "--output", type=str | None, help="Folder (default: robustness, beside the checkpoint)."
    )


def refuse_options(args: Any) -> None:
    """Refuses what has no meaning without `--robust`.

    Raises:
        UserError: Naming the first such option.
    """
    for name in _OPTIONS:
        if args[name] is not None:
            raise UserError(f"--{name} wants --robust")
    for name in ("full", "first"):
        if args[name]:
            raise UserError(f"--{name} wants --robust")


def run(args: Any, data: dict[str, Any]) -> None:
    """Attacks, prints the table, writes the folder."""
    options = _options(args)
    from torchadder.training.robust_evaluation import evaluate_robustness, open_target

    target = open_target(
        args.checkpoint,
        data,
        num_images=args.images,
        sample_seed=None if args.first else args.seed or 0,
        transfer=args.transfer,
        device=_device(args.accelerator),
    )
    wanted = Path(args.output) if args.output else target.net.path.parent / "robustness"
    folder = new_folder(wanted)
    is_quick = not args.full
    with _Bar(quiet=args.json) as bar:
        report = evaluate_robustness(target, folder, progress=bar.show, **options)
    if args.json:
        print(json.dumps(report.to_dict(), indent=2))
        return
    print(f"{target.net.path}\n{target.choice}\n\n{report}\n")
    if is_quick:
        print(f"left out: {_left_out(report.settings, args.transfer)}; --full has more")
    print(f"{report.seconds:.0f} s, written to {folder}")


def _options(args: Any) -> dict[str, Any]:
    """Arguments of `torchadder.robustness.evaluate`."""
    from torchadder.robustness import EPSILONS

    options: dict[str, Any] = {} if args.full else dict(QUICK)
    options["epsilons"] = EPSILONS if args.full else QUICK_EPSILONS
    for name in ("strong_iterations", "restarts", "queries", "seed", "batch_size"):
        if args[name] is not None:
            options[name] = args[name]
    for name in ("strong_iterations", "restarts", "queries"):
        if options.get(name, 1) < 1:
            raise UserError(f"--{name} = {options[name]}: at least 1 is wanted")
    options["epsilon"] = 8 / 255 if args.epsilon is None else number("epsilon", args.epsilon)
    _check_radius(options["epsilon"])
    if args.step is not None:
        options["step"] = number("step", args.step)
    for option, name in (
        ("attacks", "rows"),
        ("statistics", "statistics"),
        ("gradients", "gradients"),
    ):
        if args[option] is not None:
            options[name] = [word.strip() for word in args[option].split(",")]
    return options


def number(option: str, text: str | float) -> float:
    """A number, or a fraction such as 8/255.

    Raises:
        UserError: If it is neither.

    >>> number("epsilon", "51/255")
    0.2
    """
    top, slash, bottom = str(text).partition("/")
    try:
        return float(top) / float(bottom) if slash else float(top)
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(f"--{option} = {text}: a number or a fraction is wanted") from error


def _check_radius(epsilon: float) -> None:
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise UserError(f"--epsilon = {epsilon:g}: a number above 0 is wanted")


def _device(accelerator: str) -> str:
    import torch

    if accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    name = {"gpu": "cuda"}.get(accelerator, accelerator)
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--accelerator = {accelerator}: no such device here") from error
    return name


def _left_out(settings: Any, transfer: str | None) -> str:
    """What a quick evaluation did not do."""
    parts = [
        f"PGD with more than {settings.strong_iterations} iterations and {settings.restarts} "
        f"start(s)",
        f"Square with more than {settings.queries} queries",
    ]
    return ", ".join([*parts, *([] if transfer else ["transfer (--transfer CHECKPOINT)"])])


class _Bar:
    """A bar on stderr with what is done now; the expected time, said once."""

    def __init__(self, *, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import Progress as RichProgress

        self._is_quiet = quiet
        self._is_told = False
        console = Console(stderr=True)
        self._bar = RichProgress(console=console, transient=True, disable=not sys.stderr.isatty())
        self._task = self._bar.add_task("attacks", total=1.0)

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._bar.stop()

    def show(self, progress: Progress) -> None:
        """Moves the bar."""
        if not self._is_told and progress.expected_s is not None and not self._is_quiet:
            print(f"at most about {_duration(progress.expected_s)}", file=sys.stderr, flush=True)
            self._is_told = True
        self._bar.update(self._task, completed=progress.share, description=progress.text)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
