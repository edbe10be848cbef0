"""Names and shapes of every model's tensors, pinned: other people's checkpoints depend on them.

A file lists one module a line, with the shapes of its tensors. To add a model, write
`description(model)` to `state_dicts/<name>.txt`; to change a file is to break checkpoints.
"""

from pathlib import Path

import pytest
import torch

from torchadder import models

FOLDER = Path(__file__).parent / "state_dicts"


def description(model):
    """One line for each module with tensors: its path, then leaf=shape for each tensor."""
    lines = {}
    for name, tensor in model.state_dict().items():
        module, _, leaf = name.rpartition(".")
        lines.setdefault(module, []).append(f"{leaf}={'x'.join(map(str, tensor.shape))}")
    return "".join(f"{module} {' '.join(leaves)}\n" for module, leaves in lines.items())


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("conv", ["conv", "adder"])
def test_names_and_shapes(name, conv):
    with torch.device("meta"):
        model = models.build(name, conv=conv)
    assert description(model) == (FOLDER / f"{name}.txt").read_text()


def test_every_file_belongs_to_a_model():
    assert {path.stem for path in FOLDER.iterdir()} == set(models.MODELS)


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_stride_variant_has_the_same_names(name):
    with torch.device("meta"):
        model = models.build(name, stride_in_1x1=True)
    assert description(model) == (FOLDER / f"{name}.txt").read_text()


def test_embedding_takes_the_place_of_the_last_norm():
    def modules(model):
        return {name.rpartition(".")[0] for name in model.state_dict()}

    plain, flat = models.lenet5_bn(), models.lenet5_bn(feature_dim=2)
    assert modules(flat) - modules(plain) == {"embedding.0", "embedding.1"}
    assert modules(plain) - modules(flat) == {"bn_fc"}
    assert flat.state_dict()["embedding.0.weight"].shape == (2, 84, 1, 1)
    assert flat.state_dict()["fc.weight"].shape == (10, 2, 1, 1)
