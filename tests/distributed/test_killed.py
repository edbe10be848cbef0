"""kill -9 and a full disk at any moment: what was kept is whole, and going on ends the same."""

import errno
import os
import random
import signal
import time

import pytest
from safetensors import safe_open

import rank_jobs
import ranks
from torchadder.training.checkpoint_io import read_state

# Each file is forced onto the disk and renamed, then its folder is forced onto the disk. The files:
# config.yaml; metrics.csv of 3 epochs; 3 pairs last.* and 1 pair best.*; summary.json.
NUM_MOMENTS = 3 * (1 + 3 + 6 + 2 + 1)

EVERY_STEP = {"trainer.checkpoint_minutes": 0}


@pytest.fixture(scope="module")
def straight(digits, tmp_path_factory):
    """The state at the end of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    ranks.run(rank_jobs.train, digits, folder)
    return state(folder)


def state(folder):
    """All that decides how a run goes on, as bytes and plain values."""
    saved = read_state(folder / "checkpoints" / "last.ckpt")
    return {
        "weights": {name: value.numpy().tobytes() for name, value in saved["state_dict"].items()},
        "momenta": {
            key: entry["momentum_buffer"].numpy().tobytes()
            for key, entry in saved["optimizer_states"][0]["state"].items()
        },
        "schedule": saved["lr_schedulers"],
        "steps": saved["global_step"],
        "best": contents(folder / "checkpoints" / "best.safetensors"),
        "rows": [line.split(",")[:7] for line in (folder / "metrics.csv").read_text().splitlines()],
    }


def contents(path):
    """Metadata and tensors; the order of the metadata in the file is left to chance."""
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        return file.metadata(), {name: file.get_tensor(name).numpy().tobytes() for name in names}


def finish(folder, digits):
    outcome = ranks.start(rank_jobs.train_or_go_on, digits, folder).outcomes()[0]
    assert outcome.exitcode == 0
    is_finished = outcome.error is not None and "the run is finished" in outcome.error[1]
    assert outcome.error is None or is_finished, outcome.error
    assert not list(folder.rglob("*.tmp"))


def event_files(folder):
    """TensorBoard's files, of which every start of a run begins one."""
    return list(folder.glob("tensorboard/events*"))


def moments():
    """Moments of a run: all of them in the long form, some of each kind in the short one."""
    chosen = {5, 9, 17, 32, 37}
    for moment in range(1, NUM_MOMENTS + 2):
        marks = [] if moment in chosen else [pytest.mark.slow]
        yield pytest.param(moment, marks=marks)


@pytest.mark.parametrize("moment", list(moments()))
def test_killed_while_a_file_is_written(digits, straight, tmp_path, moment):
    folder = tmp_path / "run"
    outcome = ranks.start(rank_jobs.crash_while_writing, digits, folder, moment).outcomes()[0]
    if outcome.exitcode == 0:
        assert outcome.error is None
        assert moment > NUM_MOMENTS
        return
    assert outcome.exitcode == -9
    finish(folder, digits)
    assert state(folder) == straight


# Of a run that is saved after every step but the last of an epoch: config.yaml, then pairs last.*.
@pytest.mark.parametrize(
    "moment", [5, 12, 19, *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 60, 5))]
)
def test_killed_while_a_checkpoint_within_an_epoch_is_written(digits, straight, tmp_path, moment):
    folder = tmp_path / "run"
    outcome = ranks.start(
        rank_jobs.crash_while_writing, digits, folder, moment, **EVERY_STEP
    ).outcomes()[0]
    assert outcome.exitcode == -9
    finish(folder, digits)
    assert state(folder) == straight


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, EVERY_STEP], ids=["", "every step"])
@pytest.mark.parametrize("seed", range(8))
def test_killed_again_and_again(digits, straight, tmp_path, seed, options):
    folder = tmp_path / "run"
    draw = random.Random(seed)
    kills = 0
    for _ in range(4):
        started = len(event_files(folder))
        run = ranks.start(rank_jobs.train_or_go_on, digits, folder, **options)
        process = run.processes[0]
        while process.is_alive() and len(event_files(folder)) == started:
            time.sleep(0.002)
        time.sleep(draw.uniform(0.0, 0.5))
        process.kill()
        kills += run.outcomes()[0].exitcode == -signal.SIGKILL
    assert kills > 0  # of a run that had begun and was not at its end
    finish(folder, digits)
    assert state(folder) == straight


@pytest.mark.parametrize(
    "moment", [8, 20, *(pytest.param(n, marks=pytest.mark.slow) for n in (14, 17, 23, 26, 29, 32))]
)
def test_a_full_disk_leaves_the_previous_checkpoint_whole(digits, straight, tmp_path, moment):
    folder = tmp_path / "run"
    outcome = ranks.start(rank_jobs.fail_to_write, digits, folder, moment).outcomes()[0]
    kind, text = outcome.error
    assert kind == "OutputError"
    assert os.strerror(errno.ENOSPC) in text
    assert str(folder) in text
    assert "\n" not in text
    assert not list(folder.rglob("*.tmp"))
    if moment > 18:  # the first epoch's files are complete
        assert "1 of 3 epochs are kept" in text or "2 of 3 epochs are kept" in text
        saved = read_state(folder / "checkpoints" / "last.ckpt")
        assert saved["global_step"] in (4, 8)
    finish(folder, digits)
    assert state(folder) == straight


def test_files_may_not_grow(digits, tmp_path):
    """The system's own refusal, while a checkpoint is half written."""
    folder = tmp_path / "run"
    outcome = ranks.start(rank_jobs.fill_disk, digits, folder, 100_000).outcomes()[0]
    assert outcome.error[0] == "OutputError"
    assert "File too large" in outcome.error[1]
    assert "there is no checkpoint" in outcome.error[1]
    assert [path.name for path in (folder / "checkpoints").iterdir()] == []
