"""Tables of the papers, trained again: `torchadder reproduce TABLE`.

`tables` holds the rows and what the papers print, `plan` turns a table into trainings, `folder`
knows how far each has come, `running` does what is left, `results` measures, `sheets`, `writing`
and `drawing` make the CSV, Markdown and PNG files, `join` makes one table of several folders, which
`origins` has read and checked. How a net is trained is unknown here: each training is a recipe, run
by `torchadder.training`.

Names are imported on first use, so that a table can be listed without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchadder.reproduce.plan import Job as Job
    from torchadder.reproduce.plan import Plan as Plan
    from torchadder.reproduce.plan import make_plan as make_plan
    from torchadder.reproduce.running import reproduce as reproduce
    from torchadder.reproduce.tables import TABLES as TABLES
    from torchadder.reproduce.tables import Row as Row
    from torchadder.reproduce.tables import Table as Table

_NAMES = {
    "Job": "torchadder.reproduce.plan",
    "Plan": "torchadder.reproduce.plan",
    "Row": "torchadder.reproduce.tables",
    "TABLES": "torchadder.reproduce.tables",
    "Table": "torchadder.reproduce.tables",
    "make_plan": "torchadder.reproduce.plan",
    "reproduce": "torchadder.reproduce.running",
}

__all__ = ["TABLES", "Job", "Plan", "Row", "Table", "make_plan", "reproduce"]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'torchadder.reproduce' has no attribute {name!r}")
