"""`torchadder bench --device cuda` and its Markdown, on a machine without a GPU."""

import json

import torch

from bench.rigs import LANES, cpu_rig
from torchadder.bench.markdown import main as markdown
from torchadder.bench.markdown import speed_table
from torchadder.bench.shapes import GPU_SHAPES, Shape
from torchadder.cli import bench as command
from torchadder.cli import main
from torchadder.provenance import provenance

TINY = Shape(2, 3, 4, 9, 3)
PARTS = ("forward", "input gradient", "weight gradient", "step")


def layer(part, ratio, **figures):
    two_instructions = part in ("forward", "input gradient")
    return {
        "shape": TINY.name,
        "part": part,
        "adder_ms": 1.0,
        "conv_ms": {"fp32": 1 / ratio, "tf32": 0.2, "bf16": 0.1},
        "unfold_ms": 250.0,
        "ratio_to_conv": {"fp32": ratio, "tf32": 5.0, "bf16": 10.0},
        "speedup_over_unfold": 250.0,
        "elements_per_second": 9.876e12,
        "clock_hz": 1.75e9,
        "share_of_limit": 0.668 if two_instructions else None,
        "adder_peak_bytes": 220 if part == "step" else None,
        "conv_peak_bytes": 200 if part == "step" else None,
        **figures,
    }


RECORDED = {
    "date": "2031-02-03T04:05:06+00:00",
    "hardware": {"gpu": "NVIDIA H200", "gpu_driver": "575.51"},
    "versions": {"torch": "2.15.0", "cuda": "13.2", "hip": None, "triton": "3.9.0"},
    "device": "cuda",
    "shapes": [TINY.name, "3x3 16->16 @32 b256"],
    "limit": {
        "lanes": 16896,
        "clock_hz": 1.98e9,
        "pairs_per_second": 16896 * 1.98e9 / 2,
        "measured_pairs_per_second": 16.4e12,
    },
    "layers": [layer(part, 1.5 + i) for i, part in enumerate(PARTS)],
    "step": {
        "model": "resnet20",
        "batch": 256,
        "eager_ms": {"adder": 8.0, "conv": 5.0, "pkkd": 14.0},
        "graph_ms": {"adder": 3.0, "conv": 1.25, "pkkd": 6.5},
        "unfold_ms": 1600.0,
        "ratio_to_conv": {"eager": 1.6, "graph": 2.4},
        "speedup_over_unfold": 200.0,
        "peak_bytes": {"adder": 440 << 20, "conv": 400 << 20, "pkkd": 900 << 20},
        "memory_ratio": 1.1,
    },
}


def test_markdown_of_recorded_figures():
    table = speed_table(RECORDED)
    assert "NVIDIA H200 (driver 575.51, CUDA 13.2, Triton 3.9.0, torch 2.15.0), 2031-02-03" in table
    limits = "16896 lanes at 1.98 GHz: 16.73 T pairs/s; a kernel in registers: 16.40 T pairs/s"
    assert limits in table
    row = "| 1.50 | 2.50 | 3.50 | 4.50 | 5.00 | 10.00 | 9.88 | 67% | 67% | 250x | 1.10 |"
    missing = " not measured |" * 11
    lines = table.splitlines()
    assert f"| {TINY.name} {row}" in lines
    assert f"| 3x3 16->16 @32 b256 |{missing}" in lines
    assert "| resnet20 step, batch 256 | adder net | CNN twin | ratio | PKKD, both nets |" in lines
    assert "| launched call by call | 8.00 ms | 5.00 ms | 1.60 | 14.00 ms |" in lines
    assert "| CUDA graph | 3.00 ms | 1.25 ms | 2.40 | 6.50 ms |" in lines
    assert "| peak memory | 440 MiB | 400 MiB | 1.10 | 900 MiB |" in lines
    assert lines[-1] == "Launched alike, it is 200 times faster than unfold-and-broadcast."


def test_markdown_without_any_figure():
    table = speed_table({"device": "cuda"})
    lines = table.splitlines()
    for shape in GPU_SHAPES:
        assert f"| {shape.name} |{' not measured |' * 11}" in lines
    assert table.count("not measured") == len(GPU_SHAPES) * 11 + 3 * 4 + 3
    figures = [cell for line in lines[4:-5] for cell in line.split("|")[2:-1]]
    assert {cell.strip() for cell in figures} == {"not measured"}


def test_markdown_rows_are_as_wide_as_their_heads():
    for report in (RECORDED, {"device": "cuda"}, {**RECORDED, "step": None}):
        tables = [t for t in speed_table(report).split("\n\n") if t.startswith("|")]
        assert len(tables) == 2
        for table in tables:
            assert len({row.count("|") for row in table.splitlines()}) == 1


def test_markdown_of_a_file(tmp_path, capsys):
    file = tmp_path / "bench_cuda.json"
    file.write_text(json.dumps(RECORDED))
    assert markdown([str(file)]) == 0
    assert capsys.readouterr().out == speed_table(RECORDED) + "\n"
    other = tmp_path / "bench_onnx.json"
    other.write_text(json.dumps({"nets": []}))
    for argv, told in (
        ([str(tmp_path / "none.json")], "none.json"),
        ([], "wanted one file"),
        ([str(other)], "holds another kind of report"),
    ):
        assert markdown(argv) == 2
        error = capsys.readouterr().err
        assert told in error
        assert len(error.splitlines()) == 1


def test_without_a_gpu_there_is_one_clear_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = tmp_path / "new" / "bench_cuda.json"
    assert main(["bench", "--device", "cuda", "--json", str(file)]) == 2
    output = capsys.readouterr()
    assert output.err == (
        "torchadder: error: device cuda: torch finds no CUDA or ROCm device on this machine\n"
    )
    assert not output.out
    assert not file.parent.exists()


def test_command_on_a_rig(monkeypatch, capsys, tmp_path):
    """The whole command, with the processor in the GPU's place."""
    monkeypatch.setattr(command, "current_gpu", cpu_rig)
    file = tmp_path / "bench_cuda.json"
    argv = ["bench", "--device", "cuda", "--shapes", TINY.name, "--seconds", "0.001"]
    assert main([*argv, "--baseline", "false", "--step", "false", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert set(report) == {*provenance(), "device", "shapes", "limit", "layers", "step"}
    assert report["limit"]["lanes"] == LANES
    assert [result["part"] for result in report["layers"]] == list(PARTS)
    output = capsys.readouterr().out
    assert TINY.name in output
    assert "weight gradient" in output
    assert f"| {TINY.name} |" in speed_table(report)


def test_tables_of_a_report(capsys):
    from rich.console import Console

    from torchadder.bench.gpu_table import gpu_tables

    console = Console(width=160)
    for table in gpu_tables(RECORDED):
        console.print(table)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    name = TINY.name
    assert f"{name} forward 1.0000 0.6667 1.50 5.00 10.00 9.88 1.75 67% 250x" in lines
    assert "step 1.0000 0.2222 4.50 5.00 10.00 9.88 1.75 250x 1.10" in lines
    assert "adder 8.00 3.00 440" in lines
    assert "adder / conv 1.60 2.40 1.10" in lines
    assert "unfold-and-broadcast 1600.00" in lines
