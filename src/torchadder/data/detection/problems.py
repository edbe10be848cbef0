"""What is wrong with a source: collected, then raised or listed, never forgotten."""

from __future__ import annotations

from dataclasses import dataclass, field

from torchadder.data.sources import DataError


class DetectionDataError(DataError):
    """Annotated images that cannot be used; one line that names the file and the entry."""


@dataclass(frozen=True)
class LeftOut:
    """An entry that cannot be used.

    Args:
        where: The file and the entry in it.
        reason: What is wrong.
    """

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass
class Problems:
    """The bad entries of a source.

    A whole source is looked through before `settle` raises, so that the message can say how many
    entries are bad.

    Args:
        skip_bad: Whether to go on without them.
    """

    skip_bad: bool = False
    entries: list[LeftOut] = field(default_factory=list)

    def report(self, where: str, reason: str) -> None:
        """Notes a bad entry; the caller leaves it out."""
        self.entries.append(LeftOut(where, reason))

    def settle(self) -> None:
        """Raises DetectionDataError if there are bad entries and they are not to be skipped."""
        if not self.entries or self.skip_bad:
            return
        others = len(self.entries) - 1
        more = f"{others} more like it, " if others else ""
        raise DetectionDataError(f"{self.entries[0]} ({more}skip_bad=True leaves out what is bad)")
