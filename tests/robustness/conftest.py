import pytest

from attacked_nets import labelled, small


@pytest.fixture
def net():
    return small()


@pytest.fixture
def adder():
    return small("adder")


@pytest.fixture
def batch(net):
    return labelled(net)
