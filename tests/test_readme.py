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
