"""docs/distillation.md says of every method what the registry says, and its example runs."""

import re
from pathlib import Path

import pytest
import torch

from torchadder.distill import METHODS, options_of

PAGE = (Path(__file__).parents[2] / "docs/distillation.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")
def test_the_example_of_ones_own_nets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {}
    exec(compile(code, "docs/distillation.md", "exec"), names)
    assert names["pkkd"].taps == ("1.0", "2.0")
    metrics = names["trainer"].callback_metrics
    assert torch.isfinite(metrics["train_mid"])
    assert metrics["distill_strength"] == 1
    assert (tmp_path / "student.safetensors").is_file()


def test_the_table_of_methods():
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| .* \| (.*) \|$", PAGE, re.MULTILINE)
    assert [row[0] for row in rows] == list(METHODS)
    for method, name, keys in rows:
        assert METHODS[method].__name__ == name
        written = dict(re.findall(r"`(\w+)`(?: ([\w.]+))?", keys))
        options = options_of(method)
        assert list(written) == list(options), method
        for key, default in options.items():
            if isinstance(default, bool):
                assert written[key] == str(default).lower()
            elif default is None:
                assert written[key] == ""
            elif isinstance(default, str):
                assert written[key] == default
            else:
                assert float(written[key]) == default
