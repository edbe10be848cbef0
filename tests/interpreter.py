"""Runs tests of the GPU kernels without a GPU, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
INTERPRETER = {
    "TRITON_INTERPRET": "1",
    "TORCHADDER_BACKEND": "triton",
    "OMP_NUM_THREADS": "1",
}
# NumPy, which does the arithmetic here, warns of overflow that the kernels saturate on purpose and
# of infinities that meet; a GPU does not.
OPTIONS = (
    "-p", "quick_interpreter",
    "-W", "ignore:overflow encountered:RuntimeWarning",
    "-W", "ignore:invalid value encountered:RuntimeWarning",
)  # fmt: skip


def interpret(*selection):
    """Runs tests with the kernels interpreted on a CPU; what pytest prints."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *OPTIONS, *selection]
    result = subprocess.run(
        command, env={**os.environ, **INTERPRETER}, cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    return result.stdout
