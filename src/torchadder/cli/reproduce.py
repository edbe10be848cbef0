"""`torchadder reproduce`: the rows of a paper's table, trained one after another."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from torchadder.cli import UserError, nearest
from torchadder.cli.train import SHORT
from torchadder.reproduce.plan import SHARED, make_plan
from torchadder.reproduce.tables import COUNTED, TABLES
from torchadder.training.recipe import takes_text
from torchadder.wording import counted

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from torchadder.reproduce import Plan, Table
    from torchadder.reproduce.results import Results

OPTIONS = ("table", "budget", "seeds", "rows", "output", "join")
_FLAGS = ("-h", "--help", "--list", "--dry-run")

_ROW_WIDTH = 20
"""Columns of a terminal that the name of a row has at least."""


def add_arguments(parser: ArgumentParser) -> None:
    """Declares the options of `torchadder reproduce`."""
    parser.usage = (
        "torchadder reproduce TABLE [--budget EPOCHS] [--seeds N] [--rows ROWS] [--output DIR]\n"
        "                            [--data.source SOURCE] [--KEY VALUE ...] [--dry-run]\n"
        "       torchadder reproduce TABLE --join DIR,DIR,... [--rows ROWS] --output DIR\n"
        "       torchadder reproduce detection-energy [--output DIR]\n"
        "       torchadder reproduce --list"
    )
    short = ", ".join(f"--{name.replace('_', '-')}" for name in SHORT)
    parser.epilog = (
        f"TABLE is one of {', '.join(TABLES)}; {', '.join(COUNTED)} is counted, not trained, and "
        "takes --output alone. The same command goes on where it was interrupted "
        "or killed: finished rows are skipped, the row at work continues from its last checkpoint. "
        "Rows, seeds and budgets may be added to an existing folder; other settings are refused. "
        f"Any key of a recipe's sections {', '.join(SHARED)}, and of detection those that do not "
        "make the rows, can be set for all rows, such as "
        f"--data.source FOLDER or --optimizer.lr 0.05; short forms: {short}. "
        "Exit code 1: a row failed, the table says which. --debug shows the traceback of an error."
    )
    parser.add_argument("--list", action="store_true", help="List the tables and stop.")
    parser.add_argument("--table", type=str | None, help="The same as TABLE.")
    parser.add_argument(
        "--budget",
        type=str | None,
        help="Epochs of each row, the same for all; several with commas (5,10,20) make a curve "
        "(default: the paper's).",
    )
    parser.add_argument(
        "--seeds", type=int, default=1, help="Number of seeds, 0 .. N-1 (default 1)."
    )
    parser.add_argument(
        "--rows",
        type=str | None,
        help="Rows to train or to join, with commas; patterns such as 'resnet20_*' are allowed "
        "(default: all). The teachers they need come along.",
    )
    parser.add_argument(
        "--output", type=str | None, help="Folder of the table (default: runs/reproduce-TABLE)."
    )
    parser.add_argument(
        "--join",
        type=str | None,
        help="Train nothing: write one table of those in these folders, with commas. Folders of "
        "other tables bring the rows that this table has; where finished runs of two folders "
        "differ, the folder named first counts.",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="Show rows, recipes, what is done and measured, and the commands; train nothing.",
    )
    # Filled by `rewrite`.
    parser.add_argument("--overrides", type=dict, default={}, help=argparse.SUPPRESS)


def rewrite(argv: list[str]) -> list[str]:
    """Puts TABLE into an option, and the keys of recipes into `--overrides`."""
    options: list[str] = []
    positional: list[str] = []
    overrides: dict[str, Any] = {}
    position = 0
    while position < len(argv):
        argument = argv[position]
        position += 1
        if not argument.startswith("-"):
            positional.append(argument)
            continue
        if argument in _FLAGS:
            options.append(argument)
            continue
        name, equals, value = argument.partition("=")
        if name in _FLAGS:
            raise UserError(f"{name} is a flag and takes no value, got {value!r}")
        name = name.lstrip("-").replace("-", "_")
        if not equals and position < len(argv):
            value = argv[position]
            position += 1
        elif not equals:
            raise UserError(f"--{name}: a value is wanted")
        if name in SHORT or "." in name:
            key = SHORT.get(name, name)
            overrides[key] = _value(key, value)
        else:
            options.append(f"--{name}={value}")
    if len(positional) > 1:
        raise UserError(f"one table is wanted, got {' and '.join(positional)}")
    options += [f"--table={name}" for name in positional]
    # What YAML reads as a date is no value of any key; as text it is refused by name.
    given = json.dumps(overrides, default=str)
    return [*options, f"--overrides={given}"] if overrides else options


def run(args: Any) -> int | None:
    """Lists the tables, shows a plan, or trains one."""
    if args.list:
        width = max(map(len, [*TABLES, *COUNTED]))
        for table in TABLES.values():
            print(f"{table.name:<{width}}  {table.title}: {counted(len(table.rows), 'row')}")
        for name, title in COUNTED.items():
            print(f"{name:<{width}}  {title}: counted")
        return None
    if args.table in COUNTED:
        return count_table(args)
    if args.join is not None:
        return join_tables(args)
    plan = plan_of(args)
    if args.dry_run:
        show(plan)
        return None
    from torchadder.reproduce.estimates import estimate, measurements
    from torchadder.reproduce.folder import settle
    from torchadder.reproduce.running import reproduce
    from torchadder.training import launch

    if launch.is_launched():
        raise UserError(
            "reproduce starts the processes of each training itself: without torchrun, with "
            "--trainer.devices N"
        )
    settle(plan)
    print(f"{plan.table.title}, to {plan.output}: {estimate(plan, measurements(plan))}", flush=True)
    results = reproduce(plan, say=functools.partial(print, flush=True))
    return report(plan.output, results)


def count_table(args: Any) -> None:
    """Counts a table that needs no training, prints it and writes its files.

    Raises:
        UserError: If an option of trainings is given.
    """
    unused = _training_options(args)
    if args.join is not None:
        unused.append("--join")
    if unused:
        raise UserError(
            f"{args.table} is counted, not trained: {', '.join(unused)} has no meaning there, only "
            "--output has"
        )
    from torchadder.reproduce import counted

    folder = Path(args.output if args.output is not None else f"runs/reproduce-{args.table}")
    print(counted.text(counted.reproduce_counted(folder)))
    print(f"\ntable: {folder / 'table.md'}")


def join_tables(args: Any) -> int:
    """Writes one table of several folders and prints it.

    Raises:
        UserError: If an option is missing, wrong, or one of trainings.
    """
    table = _table(args.table)
    unused = [name for name in _training_options(args) if name != "--rows"]
    if unused:
        verb = "has" if len(unused) == 1 else "have"
        raise UserError(f"--join trains nothing: {', '.join(unused)} {verb} no meaning there")
    if args.output is None:
        raise UserError("--join wants --output, a folder for the joined table")
    folders = [Path(word) for word in args.join.split(",") if word]
    if len(folders) < 2:
        raise UserError(f"--join = {args.join!r}: folders of at least two tables are wanted")
    from torchadder.reproduce.join import join

    output = Path(args.output)
    return report(output, join(table, folders, output, rows=_rows(args)))


def _training_options(args: Any) -> list[str]:
    """The options in use that only a training has."""
    given = {
        "budget": args.budget is not None,
        "seeds": args.seeds != 1,
        "rows": args.rows is not None,
        "dry-run": args.dry_run,
        **dict.fromkeys(args.overrides, True),
    }
    return [f"--{name}" for name, is_given in given.items() if is_given]


def _rows(args: Any) -> list[str] | None:
    """The patterns of `--rows`."""
    return None if args.rows is None else args.rows.split(",")


def _table(name: str | None) -> Table:
    """The table of a name."""
    if name is None:
        raise UserError(f"no table given; one of {', '.join([*TABLES, *COUNTED])} is wanted")
    if name not in TABLES:
        known = [*TABLES, *COUNTED]
        hint = nearest(name, known) or f"; known are {', '.join(known)}"
        raise UserError(f"unknown table {name!r}{hint}")
    return TABLES[name]


def plan_of(args: Any) -> Plan:
    """The plan that the options ask for.

    Raises:
        UserError: If an option is missing or wrong.
    """
    table = _table(args.table)
    budgets = None
    if args.budget is not None:
        try:
            budgets = [int(word) for word in args.budget.split(",")]
        except ValueError:
            raise UserError(
                f"--budget = {args.budget!r}: whole numbers of epochs are wanted, such as 5,10,20"
            ) from None
    output = args.output if args.output is not None else f"runs/reproduce-{args.table}"
    return make_plan(
        table,
        Path(output),
        budgets=budgets,
        num_seeds=args.seeds,
        rows=_rows(args),
        overrides=args.overrides,
    )


def show(plan: Plan) -> None:
    """Prints rows, recipes, state, measured cost and commands of a plan."""
    from torchadder.report.page import duration
    from torchadder.reproduce.estimates import estimate, measurements, seconds_per_epoch
    from torchadder.reproduce.folder import settle, stage

    settle(plan)
    measured = measurements(plan)
    print(f"{plan.table.title}, to {plan.output}\n")
    rows = [("row", "recipe", "epochs", "seed", "state", "per epoch")]
    for job in plan.jobs:
        seconds = seconds_per_epoch(job, measured)
        rows.append(
            (
                job.row.key,
                job.row.recipe,
                str(job.epochs),
                str(job.seed),
                stage(job.folder, job.epochs),
                "not measured" if seconds is None else duration(seconds),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    print()
    for job in plan.jobs:
        print(job.command)
    print(f"\n{estimate(plan, measured)}")


def report(output: Path, results: Results) -> int:
    """Prints the table of a folder; the exit code is 1 if a row failed."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from torchadder.reproduce.writing import signed, with_deviation

    console = Console()
    for epochs in results.budgets:
        shown = Table(
            box=box.SIMPLE_HEAD, title=f"{results.table.title}, {counted(epochs, 'epoch')}"
        )
        shown.add_column("row", min_width=_ROW_WIDTH)
        lines = results.at(epochs)
        second = results.table.second
        names = [results.table.figure.name, *([second.name] if second else [])]
        with_printed = any(line.row.printed is not None for line in lines)
        names += ["printed", "difference"] if with_printed else []
        for name in (*names, "gain", "seeds"):
            shown.add_column(name, justify="right", no_wrap=True)
        for line in lines:
            shown.add_row(
                results.name_of(line.row),
                with_deviation(line.spread("accuracy")),
                *([with_deviation(line.spread("second"))] if second else []),
                *([str(line.row.printed or "-"), signed(line.difference)] if with_printed else []),
                with_deviation(line.gain, is_signed=True),
                f"{line.num_finished}/{len(line.runs)}",
            )
        console.print(shown)
    print(f"table: {output / 'table.md'}")
    for source in results.joined:
        if source.left_out:
            print(source.say_left_out())
    failed = [run for run in results.runs if run.stage == "failed"]
    if failed:
        print(f"{len(failed)} of {counted(len(results.runs), 'training')} failed:")
    for run in failed:
        print(f"  {run.job.name}: {run.reason}")
    return int(bool(failed))


def _value(key: str, text: str) -> Any:
    """A value of the command line, as YAML reads it; of keys that take text the text itself."""
    if takes_text(key) and text != "null":
        return text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--{key} = {text!r}: not a value") from error
    if isinstance(value, str):
        # YAML takes 1e-3, without a point, for text.
        with contextlib.suppress(ValueError):
            return float(value)
    return value
