from pathlib import Path

import pytest

from torchadder.reproduce import TABLES, make_plan
from written_runs import Trainer


@pytest.fixture
def trainer(monkeypatch):
    stand_in = Trainer()
    monkeypatch.setattr("torchadder.reproduce.drawing.draw", lambda folder, results: ())
    monkeypatch.setattr("torchadder.training.fit", stand_in.fit, raising=False)
    monkeypatch.setattr("torchadder.training.resume", stand_in.resume, raising=False)
    return stand_in


@pytest.fixture
def plan(tmp_path):
    """A plan of three rows of the digits' table."""

    def make(**options):
        options = {"rows": ["lenet5bn_conv", "lenet5bn_adder", "lenet5bn_pkkd_fixed"]} | options
        return make_plan(TABLES["mnist"], Path(tmp_path / "table"), **options)

    return make
