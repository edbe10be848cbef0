"""Options that the commands on checkpoints share: the checkpoint, other images, their spelling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchadder.cli import UserError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

DATA_KEYS = ("source", "image_column", "label_column", "val_split", "val_fraction")
"""Keys of a recipe's section `data` that may be given for a checkpoint."""


def add_checkpoint(parser: ArgumentParser) -> None:
    """Declares the checkpoint."""
    parser.add_argument(
        "checkpoint", help="A .safetensors file written by training, or a run folder (its best)."
    )


def add_images(parser: ArgumentParser, default_batch: str) -> None:
    """Declares `--data.*` and `--batch_size`.

    Args:
        parser: The command's parser.
        default_batch: The default number of images per batch, in words.
    """
    parser.add_argument(
        "--data.source", type=str | None, help="Images (default: those of the training run)."
    )
    parser.add_argument("--data.image_column", type=str | None, help="Column of the images.")
    parser.add_argument("--data.label_column", type=str | None, help="Column of the labels.")
    parser.add_argument("--data.val_split", type=str | None, help="Split to evaluate on.")
    parser.add_argument("--data.val_fraction", type=float | None, help="Part to hold out.")
    parser.add_argument(
        "--batch_size", type=int | None, help=f"Images per batch (default: {default_batch})."
    )


def given_data(args: Any) -> dict[str, Any]:
    """The `--data.*` that were given.

    Raises:
        UserError: If a batch would have no image.
    """
    if args.batch_size is not None and args.batch_size < 1:
        raise UserError(f"--batch_size = {args.batch_size}: at least 1 is wanted")
    return {key: args.data[key] for key in DATA_KEYS if args.data[key] is not None}


def underscored(argv: list[str]) -> list[str]:
    """The same words with options spelled as the parsers have them: dashes become underscores."""
    return [_underscored(word) if word.startswith("--") else word for word in argv]


def _underscored(word: str) -> str:
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value
