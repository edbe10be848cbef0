"""docs/int8.md states what the commands wrote."""

from pathlib import Path

import pytest

from torchadder.quantize import Int8Config

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/int8.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "net", ["cifar10_resnet20_adder", "mnist_lenet5bn_adder", "digits_fcos_adder_bn"]
)
def test_accuracies_are_those_of_the_results(net):
    table = (ROOT / "results/int8" / net / "accuracy.md").read_text(encoding="utf-8")
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == 5
    assert "\n".join(rows) in PAGE
    assert f"`results/int8/{net}/`" in PAGE


def test_defaults_are_those_of_the_code():
    config = Int8Config()
    assert f"percentile={config.percentile}" in PAGE
    assert f'* `"{config.range}"` (default)' in PAGE
