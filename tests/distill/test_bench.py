"""The timing of PKKD's steps: that it times what it says."""

import json
import sys

import pytest
import torch

from torchadder.bench import pkkd as bench
from torchadder.ops.pkkd import cpu, dispatch, reference


def test_command_writes_its_result_with_its_origin(tmp_path, monkeypatch, capsys):
    threads = torch.get_num_threads()
    path = tmp_path / "pkkd.json"
    words = ["pkkd", "--batch", "2", "--seconds", "0", "--threads", "1", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(bench, "ELEMENTS", 2**10)
    try:
        bench.main()
    finally:
        torch.set_num_threads(threads)
    report = json.loads(path.read_text())
    assert report["command"].startswith("python -m torchadder.bench.pkkd --batch 2")
    assert report["hardware"]["torch_threads"] == 1
    times = report["step_ms"]
    both = times["conv"] + times["adder"]
    assert report["times_both_nets"]["pkkd"] == pytest.approx(times["pkkd"] / both)
    assert [row["channels"] for row in report["widths"]] == list(bench.WIDTHS)
    assert dispatch.MAX_CHANNELS == 128
    printed = capsys.readouterr().out
    for name in ("conv", "adder", "soft labels", "without kernel", "pkkd", "pkkd by torch"):
        assert name in printed
        assert times[name] > 0


@pytest.mark.skipif(cpu.library() is None, reason="the library is not in use")
def test_torch_sums_up_only_where_it_should(monkeypatch):
    by_torch = []
    sums = reference.sums
    monkeypatch.setattr(reference, "sums", lambda sides: by_torch.append(sides) or sums(sides))
    monkeypatch.setattr(dispatch.cpu, "sums", lambda handle, sides: sums(sides))
    step = bench.distilled_step("resnet20", 2, bench.TERMS["pkkd"])
    step()
    assert not by_torch
    with bench.by_matrix_products():
        step()
    assert len(by_torch) == 20


@pytest.mark.parametrize("name", bench.TERMS)
def test_both_nets_are_trained(name, monkeypatch):
    built = []
    build = bench.models.build

    def keep(*args, **kwargs):
        built.append(build(*args, **kwargs))
        return built[-1]

    monkeypatch.setattr(bench.models, "build", keep)
    step = bench.distilled_step("resnet20", 2, bench.TERMS[name])
    before = [[p.clone() for p in net.parameters()] for net in built]
    step()
    assert len(built) == 2
    for net, values in zip(built, before, strict=True):
        for parameter, value in zip(net.parameters(), values, strict=True):
            assert not parameter.equal(value)
