"""What a run writes about itself: its recipe and its summary."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import lightning
import yaml

import torchadder
from torchadder.atomic import write_atomically
from torchadder.provenance import provenance
from torchadder.tasks import TrainingTask
from torchadder.training.recipe import Recipe


def config_text(recipe: Recipe) -> str:
    """The complete recipe as YAML, for ``config.yaml``."""
    head = f"# Written by torchadder {torchadder.__version__}; repeat with: torchadder train FILE\n"
    return head + yaml.safe_dump(recipe.to_dict(), sort_keys=False)


def final_metrics(rows: list[dict[str, float]], monitor: str) -> dict[str, float]:
    """The last epoch's metrics, and the best epoch by the metric `monitor`."""
    metrics = dict(rows[-1])
    comparable = [row for row in rows if row.get("p") == rows[-1].get("p")]  # of one operator
    best = max(comparable, key=lambda row: row.get(monitor, 0.0))
    if monitor in best:
        metrics |= {f"best_{monitor}": best[monitor], "best_epoch": best["epoch"]}
    return metrics


def write_summary(
    folder: Path,
    recipe: Recipe,
    rows: list[dict[str, float]],
    status: str,
    seconds: float,
    command: str | None,
    trainer: lightning.Trainer,
    task: TrainingTask,
) -> None:
    """Write ``summary.json``: how the run ended, its metrics, and where they come from."""
    kibibyte = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts bytes on macOS
    origin = provenance(command)
    origin["hardware"] |= {
        "device": str(trainer.strategy.root_device),
        "num_devices": trainer.num_devices,
    }
    origin["versions"]["lightning"] = lightning.__version__
    summary = {
        "name": recipe.name,
        "status": status,
        "ended_early": status == "finished" and len(rows) < recipe.epochs,
        "seed": recipe.seed,
        "epochs": len(rows),
        "metrics": final_metrics(rows, task.monitor) if rows else {},
        "seconds": round(seconds, 3),
        "seconds_per_epoch": (
            round(sum(row["seconds"] for row in rows) / len(rows), 3) if rows else None
        ),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kibibyte,
        **origin,
    }
    text = json.dumps(summary, indent=2, allow_nan=True) + "\n"
    write_atomically(folder / "summary.json", text)
