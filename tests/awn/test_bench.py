"""The timing of steps with and without normalised weights: that it times what it says."""

import json
import sys

import pytest
import torch

import torchadder as ta
from torchadder.bench import awn as bench


def test_command_writes_its_result_with_its_origin(tmp_path, monkeypatch, capsys):
    threads = torch.get_num_threads()
    path = tmp_path / "awn.json"
    words = ["awn", "--batch", "2", "--turns", "1", "--threads", "1", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", words)
    try:
        bench.main()
    finally:
        torch.set_num_threads(threads)
    report = json.loads(path.read_text())
    assert report["command"].startswith("python -m torchadder.bench.awn --batch 2")
    assert report["hardware"]["torch_threads"] == 1
    assert report["ratio"] == pytest.approx(report["awn_ms"] / report["plain_ms"])
    assert 0 < report["norm_ms"] < report["awn_ms"]
    assert f"ratio {report['ratio']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("config", [None, ta.awn.AwnConfig()])
def test_only_one_side_is_normalised(config, monkeypatch):
    nets = []
    build = ta.models.build

    def keep(*args, **kwargs):
        nets.append(build(*args, **kwargs))
        return nets[-1]

    monkeypatch.setattr(bench.models, "build", keep)
    step = bench.training_step("resnet20", 2, config)
    (net,) = nets
    assert len(ta.awn.normalised_layers(net)) == (0 if config is None else 20)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    step()
    changed = [name for name, value in net.named_parameters() if not value.equal(before[name])]
    assert len(changed) == len(list(net.parameters()))


@pytest.mark.parametrize("options", [{"turns": 0}, {"batch": 1}])
def test_too_little_to_time(options):
    with pytest.raises(ValueError, match="turns >= 1 and batch >= 2 are wanted, got"):
        bench.measure(**options)
