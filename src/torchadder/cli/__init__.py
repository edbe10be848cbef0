"""The command `torchadder`: one parser, one way to report an error.

Every sub-command is a module of this package, named like the command, with two functions:

* `add_arguments(parser)` declares its options on a `jsonargparse.ArgumentParser`;
* `run(args)` does the work and returns the exit status (None is 0).

A module may also have `rewrite(argv)`: what the user typed, turned into what its parser expects.
A command's module is imported only when that command is called, so that `torchadder --help` answers
at once. This package knows nothing of models or training: it parses, calls, and turns exceptions
meant for users into one line.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jsonargparse import ArgumentParser

COMMANDS = {
    "demo": "train a CNN, an adder net and a distilled adder net on real digits; write a report",
    "train": "train a recipe",
    "evaluate": "accuracy, or average precision, and energy of a checkpoint; --robust attacks it",
    "predict": "classify image files, or find the objects in them, with a checkpoint",
    "diagnose": "what PKKD's kernels do to a run's two nets; --stability: how stable runs trained",
    "quantize": "make an integer net of a checkpoint",
    "export": "write a net as C source, as an ONNX model or as a torch.export program",
    "energy": "multiplications, additions and energy of a model, layer by layer",
    "bench": "time the adder operator against convolution",
    "reproduce": "train the rows of a paper's table and print ours beside the paper's figures",
}
"""The sub-commands and what each does, in the order of the help text."""

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # `training.launch` counts on it


class UserError(ValueError):
    """Something the user can put right; its text is all that the user needs to see."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint `; did you mean 'x'?` with the known name closest to `name`, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def set_threads(threads: int | None) -> None:
    """Lets torch use so many threads on the CPU; None leaves the number as it is.

    Raises:
        UserError: If there would be none.
    """
    if threads is None:
        return
    if threads < 1:
        raise UserError(f"--threads = {threads}: at least 1 is wanted")
    import torch

    torch.set_num_threads(threads)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status.

    Args:
        argv: Arguments without the program's name; `sys.argv[1:]` if None.

    Returns:
        0 on success, 2 after bad input (one line on stderr), 130 after Ctrl-C, or what the
        command itself returned. With `--debug` anywhere in `argv` an error keeps its traceback.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [argument for argument in argv if argument != "--debug"]
    original_format = warnings.formatwarning
    if not debug:
        warnings.formatwarning = _format_warning
    try:
        return _dispatch(argv)
    except KeyboardInterrupt as interrupt:
        if debug:
            raise
        _report(str(interrupt) or "interrupted", interrupt, EXIT_INTERRUPTED)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone; nobody is left to tell.
        sys.stderr.close()
        return 1
    except (ValueError, OSError, FloatingPointError) as error:
        if debug:
            raise
        _report(str(error) or type(error).__name__, error, EXIT_USER_ERROR)
        return EXIT_USER_ERROR
    finally:
        warnings.formatwarning = original_format


def _dispatch(argv: list[str]) -> int:
    command = next((argument for argument in argv if not argument.startswith("-")), None)
    if command is not None and argv[0] == command and command not in COMMANDS:
        raise UserError(f"unknown command {command!r}{nearest(command, COMMANDS)}")
    if not argv:
        _build_parser(None).print_help()
        return EXIT_USER_ERROR
    module: Any = None
    if argv[0] in COMMANDS:
        module = importlib.import_module(f"torchadder.cli.{command}")
        if hasattr(module, "rewrite"):
            argv = [argv[0], *module.rewrite(argv[1:])]
    parser = _build_parser(command, module)
    args = _parse(parser, argv, module)
    if module is None:
        raise UserError(f"no command given; one of {', '.join(COMMANDS)} is wanted")
    status = module.run(args[command])
    return int(status or 0)


def _build_parser(command: str | None, module: Any = None) -> ArgumentParser:
    from jsonargparse import ArgumentParser

    import torchadder

    parser = ArgumentParser(
        prog="torchadder",
        description="Adder neural networks: train, measure and use them.",
        version=torchadder.__version__,
        exit_on_error=False,
        allow_abbrev=False,
    )
    subcommands = parser.add_subcommands(required=False, metavar="COMMAND", title="commands")
    for name, summary in COMMANDS.items():
        subparser = ArgumentParser(
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog="--debug shows the traceback of an error.",
            exit_on_error=False,
            allow_abbrev=False,
        )
        if name == command and module is not None:
            module.add_arguments(subparser)
        subcommands.add_subcommand(name, subparser, help=summary)
    return parser


def _parse(parser: ArgumentParser, argv: list[str], module: Any) -> Any:
    from jsonargparse import ArgumentError

    try:
        return parser.parse_args(argv)
    except ArgumentError as error:
        raise UserError(_explain(str(error), argv[0], module)) from error


def _explain(message: str, command: str, module: Any) -> str:
    """The parser's message in one short line, with the nearest option for an unknown one."""
    from jsonargparse import ArgumentParser

    from torchadder.training.recipe import explain

    prefix = "unrecognized arguments: "
    if prefix not in message:
        return explain(message.replace(f'Parser key "{command}.', 'Parser key "'))
    unknown = message.split(prefix, 1)[1].split()[0].split("=")[0]
    known = ["--help", "--debug"]
    if module is not None:
        alone = ArgumentParser(exit_on_error=False)
        module.add_arguments(alone)
        known += [f"--{key}" for key in alone.get_defaults().keys()]  # noqa: SIM118
    kind = "option" if unknown.startswith("-") else "argument"
    return f"unknown {kind} {unknown!r}{nearest(unknown, known)}"


def _report(message: str, error: BaseException, status: int) -> None:
    """Says an error in one line; where several processes compute, only one of them does."""
    message = " ".join(message.split())
    if "RANK" in os.environ:
        from torchadder.training import launch

        is_lost = isinstance(error, ConnectionError)
        if launch.report(message, status=status, lost=is_lost) or launch.is_silent(error):
            return
    print(f"torchadder: error: {message}", file=sys.stderr)


def _format_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    return f"torchadder: warning: {' '.join(str(message).split())}\n"
