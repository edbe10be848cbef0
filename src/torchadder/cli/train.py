"""`torchadder train`: a recipe, with any of its keys replaced on the command line."""

from __future__ import annotations

import dataclasses
import json
from argparse import SUPPRESS
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from torchadder import recipes
from torchadder.cli import UserError, detectors
from torchadder.training import launch
from torchadder.training.recipe import PLACE_KEYS, Recipe, from_dict, read_recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jsonargparse import ArgumentParser

# Short forms of the keys that smoke runs and machines need.
SHORT = {
    "accelerator": "trainer.accelerator",
    "accumulate": "trainer.accumulate",
    "batch_size": "data.batch_size",
    "devices": "trainer.devices",
    "limit_train_batches": "trainer.limit_train_batches",
    "limit_val_batches": "trainer.limit_val_batches",
    "precision": "trainer.precision",
    "threads": "trainer.threads",
}
_FLAGS = ("-h", "--help", "--list", "--show")


def add_arguments(parser: ArgumentParser) -> None:
    """Declares the options of `torchadder train`."""
    parser.usage = (
        "torchadder train RECIPE [--KEY VALUE ...]\n"
        "       torchadder train --resume RUN_FOLDER [--devices N ...]\n"
        "       torchadder train RECIPE [--KEY VALUE ...] --show\n"
        "       torchadder train --list"
    )
    short = ", ".join(f"--{name.replace('_', '-')}" for name in SHORT)
    parser.epilog = (
        "RECIPE is a name from --list or a YAML file, such as the config.yaml of a run. "
        "A file with `base: OTHER` takes over the values of the recipe OTHER (a name, or a file "
        "beside it) and states only what differs; sections are merged key by key. "
        "A value is taken from the command line, else from the recipe, else from the default. "
        f"Short for --trainer.* and --data.batch_size: {short}. "
        "--skip-bad (of --detection.skip_bad true) goes on without annotations that cannot be "
        "used, and lists them. "
        "--debug shows the traceback of an error."
    )
    parser.add_argument("--list", action="store_true", help="List the recipes and stop.")
    parser.add_argument(
        "--show",
        action="store_true",
        help="Print the recipe with all its keys, under the comment at its head, and stop.",
    )
    parser.add_argument(
        "--output", type=str | None, help="Run folder, new or empty (default: runs/NAME-TIME)."
    )
    parser.add_argument("--resume", type=str | None, help="Run folder to continue.")
    parser.add_argument("--place", type=dict | None, help=SUPPRESS)
    parser.add_argument("--origin", type=str | None, help=SUPPRESS)
    parser.add_argument("--recipe", action="config", help="The same as RECIPE.")
    parser.add_class_arguments(Recipe)


def rewrite(argv: list[str]) -> list[str]:
    """Puts the recipe first, as the parser's config file, and spells short options out."""
    options: list[str] = []
    positional: list[str] = []
    position = 0
    while position < len(argv):
        argument = argv[position]
        position += 1
        if not argument.startswith("-"):
            positional.append(argument)
            continue
        name, equals, value = argument.partition("=")
        name = name if name in _FLAGS else "--" + name.lstrip("-").replace("-", "_")
        if name == "--skip_bad" and not equals:
            options.append("--detection.skip_bad=true")
            continue
        name = f"--{SHORT.get(name[2:], name[2:])}" if name.startswith("--") else name
        if name == "--recipe" and (equals or position < len(argv)):
            positional.append(value if equals else argv[position])
            position += not equals
            continue
        options.append(name + equals + value)
        if not equals and name not in _FLAGS and position < len(argv):
            options.append(argv[position])
            position += 1
    if len(positional) > 1:
        raise UserError(f"one recipe is wanted, got {' and '.join(positional)}")
    if not positional:
        return _place_apart(options)
    recipes.load(positional[0])  # its errors name the file and the nearest key; the parser's do not
    # The parser takes the merged values in place of a file: it knows nothing of a recipe's base.
    values = recipes.read(positional[0])
    for name, value in _pairs(options):
        if name == "--method":
            values = recipes.for_method(values, value)
    return ["--recipe", json.dumps(values), f"--origin={positional[0]}", *options]


def _pairs(options: list[str]) -> Iterator[tuple[str, str]]:
    """Names and values of options; a flag has an empty one."""
    words = iter(options)
    for word in words:
        name, equals, value = word.partition("=")
        yield name, value if equals or name in _FLAGS else next(words, "")


def _place_apart(options: list[str]) -> list[str]:
    """With --resume, what is given for `trainer.*`: the parser could not tell it from defaults."""
    if not any(option.partition("=")[0] == "--resume" for option in options):
        return options
    kept: list[str] = []
    place: dict[str, Any] = {}
    for name, value in _pairs(options):
        if name in _FLAGS:
            kept.append(name)
        elif name.startswith("--trainer."):
            place[name.removeprefix("--trainer.")] = _yaml_value(name, value)
        elif name in ("--resume", "--output"):
            kept += [name, value]
        else:
            raise UserError(
                f"--resume takes the recipe of the run; {name} cannot be given, only --trainer."
                f"{', --trainer.'.join(PLACE_KEYS)}"
            )
    return [*kept, "--place", json.dumps(place)] if place else kept


def _yaml_value(option: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{option} {text}: cannot be read as a value") from error


def run(args: Any) -> None:
    """Trains, resumes, or shows one recipe or the list of all."""
    if args.list:
        width = max(len(name) for name in recipes.names())
        for name in recipes.names():
            print(f"{name:<{width}}  {recipes.describe(name)}")
        return
    if args.resume is not None:
        if args.recipe:
            raise UserError("--resume takes the recipe of the run; leave RECIPE out")
        if args.output is not None:
            raise UserError(f"--resume goes on in {args.resume}; leave --output out")
        recipe = read_recipe(Path(args.resume), args.place)
    elif args.recipe:
        values = args.as_dict()
        sections = {field.name: values[field.name] for field in dataclasses.fields(Recipe)}
        recipe = from_dict(sections, "command line")
    else:
        raise UserError("no recipe given; torchadder train --list shows what there is")
    if args.show:
        _show(recipe, args.origin)
        return
    if launch.is_launched():
        launch.hold_lifeline()
    elif launch.count_devices(recipe.trainer) > 1:
        _run_in_processes(launch.count_devices(recipe.trainer))
        return
    from torchadder.training import fit, resume

    if args.resume is not None:
        _report(resume(args.resume, place=args.place))
    else:
        _report(fit(recipe, output=args.output))


def _show(recipe: Recipe, origin: str | None) -> None:
    """Prints a recipe file: the head of `origin`, if there is one, and all keys."""
    for line in recipes.header(origin).splitlines() if origin else ():
        print(f"# {line}".rstrip())
    print(yaml.safe_dump(recipe.to_dict(), sort_keys=False), end="")


def _run_in_processes(num_processes: int) -> None:
    status, message = launch.launch(launch.command_again(), num_processes)
    if status == launch.EXIT_INTERRUPTED:
        raise KeyboardInterrupt(message)
    if message is not None:
        raise UserError(message)


def _report(result: Any) -> None:
    from lightning.pytorch.utilities import rank_zero_only

    from torchadder.report import write_run_report

    if rank_zero_only.rank:  # type: ignore[attr-defined]
        return
    metrics = result.metrics
    if "best_val_accuracy" not in metrics:
        detectors.report_run(result)
        return
    print(
        f"best epoch {metrics['best_epoch']:.0f}: "
        f"validation accuracy {100 * metrics['best_val_accuracy']:.2f} %"
    )
    print(f"run folder: {result.folder}")
    page = write_run_report(result.folder, model=result.model, data=result.data)
    print(f"report: {page}")
