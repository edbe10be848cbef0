"""The note on the speed of ONNX models: measured, and the docs say what was measured."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from torchadder.bench.onnx_models import _session, measure, table

ROOT = Path(__file__).parents[2]


def test_the_docs_hold_the_measured_table():
    measured = json.loads((ROOT / "results" / "bench_onnx.json").read_text(encoding="utf-8"))
    docs = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    assert table(measured["nets"]) in docs
    assert measured["date"][:10] in docs
    assert re.search(rf"onnxruntime {re.escape(measured['versions']['onnxruntime'])}\b", docs)


def test_threads_of_onnxruntime_do_not_spin_on_the_cores_of_the_next_side(monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    given = []

    class Session:
        def __init__(self, path, options, providers):
            given.append(options)

        def run(self, outputs, inputs):
            return outputs

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    assert _session(Path("net.onnx"), np.zeros((1, 1, 2, 2)), threads=2)() is None
    (options,) = given
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


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
