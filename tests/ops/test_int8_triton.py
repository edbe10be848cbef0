"""The GPU kernel of bytes without a GPU: in the interpreter, and as machine code."""

import re
from pathlib import Path

import pytest

from interpreter import interpret

KERNEL_TESTS = Path(__file__).with_name("test_int8_gpu.py")


def test_the_kernel_in_the_interpreter():
    assert re.search(r"\d\d passed", interpret(str(KERNEL_TESTS)))


@pytest.mark.slow
@pytest.mark.parametrize("capability", [75, 80, 90])
def test_one_instruction_takes_four_differences(capability):
    from torchadder.bench.machine_code import inspect_int8

    for row in inspect_int8(capability):
        assert row["arithmetic_per_pair"] == 0.25
        assert row["spills"] == 0
