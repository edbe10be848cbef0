"""Building exported C nets, running them, and reading their machine code."""

import re
import subprocess

import torch

from torchadder.export import to_c

WARNINGS = (
    "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Wcast-qual",
    "-Wstrict-prototypes", "-Wmissing-prototypes", "-Wundef", "-Werror",
)  # fmt: skip

MULTIPLICATION = re.compile(r"mul|ml[as]|madd|msub|mneg|dot|dp[bw]")
"""In the names of multiplying instructions of x86 (imul, pmulld, pmaddwd, vpdpbusd), of 64-bit ARM
(mul, madd, msub, mneg, smull, mla, mls, udot) and of 32-bit ARM (mul, mla, mls, smull, smlabb)."""

ADDER_FUNCTIONS = ("run_layer", "gather", "sum_differences")
"""All that runs for an adder layer, but for the requantisation."""


def export(program, folder, **options):
    """An export with pixels in 0..1, whatever the program has recorded."""
    channels = program.input.channels
    options = {"mean": [0.0] * channels, "std": [1.0] * channels} | options
    return to_c(program, folder, **options)


def compiler(tool, *arguments, folder):
    """Runs a tool of a compiler in a folder; what it says is an error."""
    done = subprocess.run([tool, *arguments], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), f"{tool} {arguments}: {done.stderr}"
    return done.stdout


def build(folder, *flags, cc="gcc", name="net", output="classify"):
    """Compiles with all warnings as errors; the path of the program."""
    compiler(cc, *WARNINGS, *flags, "-o", output, "main.c", f"{name}.c", folder=folder)
    return folder / output


def run(program, images, *, before=(), classes=10):
    """Classes and logits that an exported net prints for pixels (N, C, H, W), uint8."""
    assert images.dtype == torch.uint8
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy().tobytes()
    done = subprocess.run(
        [*before, str(program), "--logits", "--raw", "-"], input=pixels, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
    lines = [line.split() for line in done.stdout.decode().splitlines()]
    assert [line[:2] for line in lines] == [["image", f"{n}:"] for n in range(len(images))]
    best = torch.tensor([int(line[2]) for line in lines])
    return best, torch.tensor([[int(n) for n in line[-classes:]] for line in lines])


def instructions(folder, *flags, cc="gcc", name="net"):
    """Names of the instructions of each function of a net's source."""
    compiler(cc, "-std=c99", *flags, "-c", f"{name}.c", "-o", "net.o", folder=folder)
    objdump = f"{cc.removesuffix('gcc')}objdump"
    text = compiler(objdump, "-d", "--no-show-raw-insn", "net.o", folder=folder)
    functions = {}
    for line in text.splitlines():
        if head := re.fullmatch(r"[0-9a-f]+ <(.+)>:", line):
            functions[head[1]] = []
        elif code := re.match(r"\s+[0-9a-f]+:\s+(\S+)", line):
            functions[list(functions)[-1]].append(code[1])
    return functions


def multiplications(functions, name):
    """Multiplying instructions of a function and of the copies that a compiler made of it."""
    found = {key: body for key, body in functions.items() if key.split(".")[0] == name}
    assert found, f"no function {name} among {', '.join(functions)}"
    return [code for body in found.values() for code in body if MULTIPLICATION.search(code)]
