"""The command that times attacks."""

import json

import pytest
import torch

from torchadder.bench import attacks


def test_both_sides_are_timed_and_written(monkeypatch, capsys, tmp_path):
    path = tmp_path / "attacks.json"
    argv = ["attacks", "--batch", "1", "--turns", "1", "--json", str(path)]
    monkeypatch.setattr("sys.argv", argv)
    threads = torch.get_num_threads()
    attacks.main()
    torch.set_num_threads(threads)
    report = json.loads(path.read_text())
    assert [result["conv"] for result in report["results"]] == ["adder", "conv"]
    for result in report["results"]:
        assert result["ratio"] == pytest.approx(result["attack_ms"] / result["passes_ms"])
        assert f"ratio {result['ratio']:.3f}" in capsys.readouterr().out or result["conv"] == "conv"
    assert report["command"].startswith("python -m torchadder.bench.attacks --batch 1")
    assert report["hardware"]["cpu"]


def test_the_sides_do_what_they_say(monkeypatch):
    from torchadder import models

    built = []
    original = models.build
    monkeypatch.setattr(
        models, "build", lambda *a, **k: built.append(original(*a, **k)) or built[0]
    )
    sides = attacks.calls("resnet20", "adder", 2)
    count = []
    built[0].register_forward_pre_hook(lambda module, args: count.append(len(args[0])))
    sides["attack"]()
    assert count == [2] * (1 + 7 + 1)
    assert all(p.grad is None for p in built[0].parameters())
    sides["passes"]()
    assert count == [2] * (9 + 8)
    assert all(p.grad is not None for p in built[0].parameters())


def test_bad_numbers():
    with pytest.raises(ValueError, match="turns and batch must be at least 1"):
        attacks.measure("resnet20", "adder", 0, 1)
