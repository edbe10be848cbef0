import pytest

from torchadder import recipes


@pytest.fixture(scope="session")
def train(tmp_path_factory):
    """Trains a recipe on real digits for a few steps and returns the result."""
    from torchadder.training import fit

    def run(name, **overrides):
        values = {"epochs": 2, "trainer.threads": 1, "trainer.limit_train_batches": 3}
        recipe = recipes.load(name, values | overrides)
        return fit(recipe, output=tmp_path_factory.mktemp(name), command=f"torchadder train {name}")

    return run


@pytest.fixture(scope="session")
def adder_run(train):
    return train("mnist_lenet5bn_adder")


@pytest.fixture(scope="session")
def pkkd_run(train):
    return train("mnist_lenet5bn_pkkd")
