"""What two processes write about the stability of a net is what one writes."""

import pytest

import rank_jobs
import ranks
from torchadder.stability.table import read_table


def by_key(folder):
    return {row[:3]: row[3] for row in read_table(folder / "stability.csv")}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_first_process_writes(tmp_path, digits):
    options = {"trainer.record_stability": 2, "trainer.sync_batchnorm": True, "epochs": 1}
    options |= {"data.num_classes": 10, "trainer.precision": "64-true"}
    alone = ranks.run(rank_jobs.train, digits, tmp_path / "one", **options)
    both = ranks.run(rank_jobs.train, digits, tmp_path / "two", world_size=2, **options)
    want, got = (by_key(tmp_path / name) for name in ("one", "two"))
    assert alone[0]["folder"] != both[0]["folder"]
    assert got.keys() == want.keys()
    for key, value in want.items():
        assert got[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key
