"""The house: who may import whom, what an import costs, which names are public."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import torchadder

PACKAGE = Path(torchadder.__file__).parent

# From the bottom up; a part may import parts of lower layers and its own.
LAYERS = (
    ("wording", "processes", "locks"),
    ("ops",),
    ("functional",),
    ("nn",),
    ("optim", "convert", "atomic", "lp", "slac", "awn", "quantize"),
    ("models", "energy", "data", "checkpoint", "provenance", "stability"),
    ("distill", "robustness", "detection", "export"),
    ("tasks", "bench"),
    ("training", "report"),
    ("recipes",),
    ("reproduce",),
    ("cli",),
    ("__main__",),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
# Siblings of one layer that may use each other: training writes the report of its run, a conversion
# may normalise the weights of the new layers.
SIBLINGS = {
    ("convert", "awn"),
    ("checkpoint", "models"),
    ("training", "report"),
}


def part_of(module):
    names = module.split(".")
    return names[1] if len(names) > 1 else ""


def imports():
    """(importing part, imported part, file) for every import inside the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE).with_suffix("")
        part = relative.parts[0]
        if part == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.ImportFrom)
                and (node.module or "").split(".")[0] == "torchadder"
            ):
                names = (
                    [node.module]
                    if "." in node.module
                    else [f"torchadder.{a.name}" for a in node.names]
                )
            elif isinstance(node, ast.Import):
                names = [a.name for a in node.names if a.name.startswith("torchadder.")]
            else:
                continue
            assert not getattr(node, "level", 0), f"{path}: relative import"
            for name in names:
                yield part, part_of(name), path


def test_imports_only_point_down():
    found = list(imports())
    assert len(found) > 20
    for part, target, path in found:
        if target == part or target not in LEVEL:
            continue
        allowed = LEVEL[target] < LEVEL[part] or (part, target) in SIBLINGS
        assert allowed, f"{path} ({part}) imports {target}"


def test_every_part_has_a_layer():
    parts = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert parts - {"__init__"} == set(LEVEL) - ({"recipes"} - parts)


def test_import_is_lean():
    heavy = ["lightning", "torchvision", "datasets", "matplotlib", "triton", "tensorboard", "rich"]
    code = f"import sys, torchadder; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stdout + result.stderr


def test_import_does_not_start_cuda():
    code = "import torch, torchadder; print(torch.cuda.is_initialized())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "False\n", result.stderr


@pytest.mark.parametrize("name", sorted(torchadder.__all__))
def test_public_name(name):
    assert getattr(torchadder, name) is not None
    assert name in dir(torchadder)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'adder9d'"):
        torchadder.adder9d  # noqa: B018


def test_promised_names():
    assert {"adder1d", "adder2d", "adder_linear", "adder_transpose2d"} <= set(
        torchadder.functional.__all__
    )
    assert {"Adder1d", "Adder2d", "AdderLinear", "AdderTranspose2d"} <= set(torchadder.nn.__all__)


def test_one_openmp_pool():
    """The kernels and torch share the OpenMP runtime: one is mapped into the process."""
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc")
    code = (
        "import torch, torchadder as ta; ta.nn.Adder2d(3, 8, 3)(torch.randn(1, 3, 9, 9));"
        "paths = {l.split()[-1] for l in open('/proc/self/maps') if 'gomp' in l or 'libomp' in l};"
        "print(len(paths))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ)
    )
    assert result.stdout == "1\n", result.stdout + result.stderr


def test_doctests():
    import doctest
    import importlib

    package = Path(torchadder.__file__).parent
    with_examples = [file for file in package.rglob("*.py") if ">>> " in file.read_text("utf-8")]
    assert len(with_examples) > 50
    for file in with_examples:
        name = ".".join(file.relative_to(package.parent).with_suffix("").parts)
        result = doctest.testmod(importlib.import_module(name.removesuffix(".__init__")))
        assert not result.failed, name
