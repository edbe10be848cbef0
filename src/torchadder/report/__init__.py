"""Reports: what a finished run has to show, as figures (PNG) and one HTML page.

`write_run_report` makes the page of one run folder, `write_comparison` that of several runs side by
side, which is what `torchadder demo` shows. Numbers are computed in `statistics` and
`evaluation`, drawn in `figures`, put into words in `sentences`; every sentence of a page follows
from a measured number. How nets are trained is unknown here: a report reads what a run left.

Names are imported on first use, so that nothing here costs a program that draws nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchadder.report.comparison import Comparison as Comparison
    from torchadder.report.comparison import write_comparison as write_comparison
    from torchadder.report.run_report import write_run_report as write_run_report

_NAMES = {
    "Comparison": "torchadder.report.comparison",
    "write_comparison": "torchadder.report.comparison",
    "write_run_report": "torchadder.report.run_report",
}

__all__ = ["Comparison", "write_comparison", "write_run_report"]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'torchadder.report' has no attribute {name!r}")
