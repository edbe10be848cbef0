"""Annotated images for detection, whatever they come from.

Examples:
    >>> from torchadder.data.detection import open_detection
    >>> open_detection("digit-scenes").class_names[:3]
    ['0', '1', '2']

`open_detection` finds out what a source is and checks its annotations; `divide` chooses the splits;
`DetectionImages` are the items for a loader, `collate` makes a batch for torchvision's detectors,
`DetectionData` does all of it for a trainer;
`coco_ground_truth` and `coco_results` write what the evaluation reads.

The package stands beside the images for classification and not in `torchadder.detection`: what
annotated images are does not depend on the detector that sees them. So the detectors, the tasks and
the evaluation may all import it, and it shares the decoding, the hashed random numbers and the
order of an epoch with `torchadder.data`. Detectors, losses and metrics are not known here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchadder.data.detection.digits import DigitScenes as DigitScenes
    from torchadder.data.detection.items import DetectionImages as DetectionImages
    from torchadder.data.detection.items import collate as collate
    from torchadder.data.detection.module import DetectionData as DetectionData
    from torchadder.data.detection.opening import divide as divide
    from torchadder.data.detection.opening import find_format as find_format
    from torchadder.data.detection.opening import open_detection as open_detection
    from torchadder.data.detection.problems import DetectionDataError as DetectionDataError
    from torchadder.data.detection.problems import LeftOut as LeftOut
    from torchadder.data.detection.tables import Categories as Categories
    from torchadder.data.detection.tables import DetectionSource as DetectionSource
    from torchadder.data.detection.tables import DetectionSplit as DetectionSplit
    from torchadder.data.detection.transforms import Augmentation as Augmentation
    from torchadder.data.detection.writing import coco_ground_truth as coco_ground_truth
    from torchadder.data.detection.writing import coco_results as coco_results
    from torchadder.data.detection.writing import write_json as write_json

_NAMES = {
    "Augmentation": "transforms",
    "Categories": "tables",
    "DetectionData": "module",
    "DetectionDataError": "problems",
    "DetectionImages": "items",
    "DetectionSource": "tables",
    "DetectionSplit": "tables",
    "DigitScenes": "digits",
    "LeftOut": "problems",
    "coco_ground_truth": "writing",
    "coco_results": "writing",
    "collate": "items",
    "divide": "opening",
    "find_format": "opening",
    "open_detection": "opening",
    "write_json": "writing",
}

__all__ = [
    "Augmentation",
    "Categories",
    "DetectionData",
    "DetectionDataError",
    "DetectionImages",
    "DetectionSource",
    "DetectionSplit",
    "DigitScenes",
    "LeftOut",
    "coco_ground_truth",
    "coco_results",
    "collate",
    "divide",
    "find_format",
    "open_detection",
    "write_json",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
