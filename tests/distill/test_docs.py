"""docs/distillation.md says of every method what the registry says."""

import re
from pathlib import Path

from torchadder.distill import METHODS, options_of

PAGE = (Path(__file__).parents[2] / "docs/distillation.md").read_text(encoding="utf-8")


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
