"""The note on the speed of ONNX models: measured, and the docs say what was measured."""

import json
import re
from pathlib import Path

import pytest

from torchadder.bench.onnx_models import measure, table

ROOT = Path(__file__).parents[2]


def test_the_docs_hold_the_measured_table():
    measured = json.loads((ROOT / "results" / "bench_onnx.json").read_text(encoding="utf-8"))
    docs = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    assert table(measured["nets"]) in docs
    assert measured["date"][:10] in docs
    assert re.search(rf"onnxruntime {re.escape(measured['versions']['onnxruntime'])}\b", docs)


@pytest.mark.slow
def test_measure():
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    row = measure("lenet5_bn", 2, seconds=0.1, threads=1)
    assert (row["model"], row["batch"], row["threads"]) == ("lenet5_bn", 2, 1)
    for side in ("adder_torch", "adder_onnxruntime", "conv_torch", "conv_onnxruntime"):
        assert 0 < row[f"{side}_ms"] < 1000
    # 63,700 weights, stored once, and the definition of Adder2d.
    assert 4 * 60_000 < row["file_bytes"] < 4 * 75_000
    assert "| lenet5_bn | 2 | " in table([row])
