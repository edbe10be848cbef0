"""README keeps its promises: its example runs, its figures are those of results/."""

import json
import re
from pathlib import Path

import pytest

from torchadder.bench.markdown import speed_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_speed_is_what_the_benchmark_wrote():
    report = json.loads((ROOT / "results/bench_cpu.json").read_text(encoding="utf-8"))
    assert speed_table(report) in README


def test_speed_on_a_gpu_is_what_the_benchmark_wrote_or_not_measured():
    path = ROOT / "results/bench_cuda.json"
    report = json.loads(path.read_text()) if path.exists() else {"device": "cuda"}
    assert speed_table(report) in (ROOT / "docs/gpu.md").read_text(encoding="utf-8")
    assert path.exists() or "speed is not measured" in README


def test_share_of_necessary_instructions_is_what_the_disassembly_shows():
    report = json.loads((ROOT / "results/machine_code_sm90.json").read_text(encoding="utf-8"))
    loops = [loop for loop in report["loops"] if "sign" not in loop["kernel"]]
    assert {loop["arithmetic_per_pair"] for loop in loops} == {2}
    shares = [round(100 * loop["least_share"]) for loop in loops]
    assert f"{min(shares)} to {max(shares)} % of all they issue" in README


@pytest.mark.filterwarnings("ignore::UserWarning:torchvision")
def test_example_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert "conv1" in capsys.readouterr().out


def test_links_exist():
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link


def test_commands_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_figures_of_the_documentation_exist():
    links = [
        page.parent / link
        for page in sorted((ROOT / "docs").glob("*.md"))
        for link in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert links
    assert not [str(link) for link in links if not link.is_file()]
