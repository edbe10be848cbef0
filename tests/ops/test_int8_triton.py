"""The GPU kernel of bytes without a GPU: in Triton's interpreter."""

import re
from pathlib import Path

from interpreter import interpret

KERNEL_TESTS = Path(__file__).with_name("test_int8_gpu.py")


def test_the_kernel_in_the_interpreter():
    assert re.search(r"\d\d passed", interpret(str(KERNEL_TESTS)))
