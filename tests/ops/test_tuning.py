"""The choice of tiles: a model, measurements where they are asked for, a table on disk."""

import json

import pytest
import torch

import torchadder as ta

pytest.importorskip("triton")

from torchadder.ops.triton import tiles, tuning

SHAPE = (3000, 64, 576, 1)
KEY = "cpu, forward, float32, rows 2^12, 64 columns, depth 576, 1 groups"
A, B, C = tiles.TILES[:3]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHADDER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCHADDER_AUTOTUNE", raising=False)
    monkeypatch.setattr(tuning, "_asked", None)
    tuning._table.cache_clear()
    tuning._warn_once.cache_clear()
    yield tmp_path / "cache" / "tiles.json"
    tuning._table.cache_clear()


def run_best(candidates=(A, B, C)):
    used = []
    tuning.run_best("forward", SHAPE, A, candidates, torch.zeros(1), used.append)
    return used


@pytest.fixture
def stopwatch(monkeypatch):
    """A device that can be measured on, B being the fastest tile."""
    order = []

    def milliseconds(run):
        run()
        order.append(len(order))
        return {0: 3.0, 1: 1.0, 2: 2.0}[order[-1]]

    monkeypatch.setattr(tuning, "_can_measure", lambda tensor: True)
    monkeypatch.setattr(tuning, "_milliseconds", milliseconds)
    return order


def test_nothing_is_measured_unless_asked(cache, stopwatch):
    assert run_best() == [A]
    assert not stopwatch
    assert not cache.exists()


@pytest.mark.parametrize("how", ["environment", "call"])
def test_fastest_tile_is_kept(cache, stopwatch, monkeypatch, how):
    if how == "environment":
        monkeypatch.setenv("TORCHADDER_AUTOTUNE", "1")
    else:
        ta.ops.autotune()
    assert run_best() == [A, B, C, B]
    assert json.loads(cache.read_text()) == {KEY: list(B)}
    assert run_best() == [B]
    tuning._table.cache_clear()  # another process
    tuning.autotune(False)
    assert run_best() == [B]
    assert len(stopwatch) == 3


def test_tile_that_is_no_candidate_is_not_used(cache):
    cache.parent.mkdir()
    cache.write_text(json.dumps({KEY: [1, 1, 1, 1]}))
    assert run_best() == [A]


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": 3}', '{"a": ["x", 1, 1, 1]}'])
def test_damaged_table_warns_and_is_not_used(cache, text):
    cache.parent.mkdir()
    cache.write_text(text)
    with pytest.warns(UserWarning, match="is no table of tiles"):
        assert run_best() == [A]


def without_home(monkeypatch):
    for name in ("TORCHADDER_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(tuning.Path, "home", home)


def test_home_is_looked_for_only_where_no_variable_says_the_place(cache, monkeypatch):
    without_home(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert tuning.cache_file() == tuning.Path("/caches/torchadder/tiles.json")
    monkeypatch.setenv("TORCHADDER_CACHE", "/cache")
    assert tuning.cache_file() == tuning.Path("/cache/tiles.json")


def test_no_home_is_no_table(cache, stopwatch, monkeypatch):
    without_home(monkeypatch)
    assert run_best() == [A]
    tuning.autotune()
    with pytest.warns(UserWarning, match=r"kept for this process only .Could not determine home"):
        assert run_best() == [A, B, C, B]
    assert run_best() == [B]


def test_table_that_may_not_be_read_is_none(cache, monkeypatch):
    def refused(*args, **kwargs):
        raise PermissionError("denied")

    monkeypatch.setattr(tuning.Path, "read_text", refused)
    monkeypatch.setattr(tuning.Path, "exists", refused)
    assert run_best() == [A]


def test_disk_that_takes_no_table_warns_once(cache, stopwatch):
    cache.parent.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="measured tiles are kept for this process only"):
        tuning._keep("first", A)
    tuning._keep("second", B)
    assert tuning._table()["second"] == B


def test_shipped_table_is_readable():
    assert isinstance(tuning._read(tuning._SHIPPED), dict)


def test_model_prefers_large_tiles_for_large_problems_and_wide_ones_for_many_channels():
    large = tiles.choose(2**20, 256, 2304, 1, 132)
    assert large.block_m * large.block_n == 128 * 128
    assert tiles.choose(2**20, 16, 144, 1, 132).block_n == 16
    assert tiles.choose(49 * 8, 512, 4608, 1, 132).block_m == 64
    assert {tiles.choose(2**20, 256, 2304, 1, 132, tiles.GRADIENT_TILES).rows} <= {4, 8}


@pytest.mark.parametrize(("depth", "length"), [(1, 1), (3, 1), (6, 2), (20, 4), (64, 8), (512, 8)])
def test_stretch_divides_the_depth(depth, length):
    assert tiles.stretch(depth) == length
