"""What starts the processes, and which one speaks: with programs that need no torch."""

import json
import os
import signal
import sys
import time

import pytest

from torchadder.cli import UserError
from torchadder.cli.train import rewrite
from torchadder.data import BatchPlan, DataError
from torchadder.training import RecipeError, launch
from torchadder.training.recipe import TrainerConfig, read_recipe

PROGRAM = """
import json, os, signal, sys, time
rank = int(os.environ["RANK"])
def report(message, status, lost=False):
    with open(os.environ["TORCHADDER_REPORT"], "w") as file:
        json.dump({"message": message, "status": status, "lost": lost}, file)
"""


def run(text, num_processes=2):
    return launch.launch([sys.executable, "-c", PROGRAM + text], num_processes)


def test_every_process_knows_its_place(tmp_path):
    text = f"""
keys = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
with open(r"{tmp_path}/" + str(rank), "w") as file:
    json.dump({{key: os.environ[key] for key in keys}}, file)
"""
    assert run(text, 3) == (0, None)
    places = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(3)]
    assert [place["RANK"] for place in places] == ["0", "1", "2"]
    assert {place["WORLD_SIZE"] for place in places} == {"3"}
    assert len({place["MASTER_PORT"] for place in places}) == 1


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("sys.exit(3 * rank)", (3, "rank 1 of 2 ended with status 3")),
        ("os.kill(os.getpid(), 9) if rank else None", (2, "rank 1 of 2 was ended by SIGKILL")),
        # What a process met itself says more than that another one was lost.
        ("report(['lost', 'own'][rank], 2, lost=not rank); sys.exit(2)", (2, "own")),
        ("report(f'lost {rank}', 2, lost=True); sys.exit(2)", (2, "lost 0")),
        ("report('interrupted', 130); sys.exit(130)", (130, "interrupted")),
    ],
)
def test_one_line_is_said(text, want):
    assert run(text) == want


def test_a_process_that_hangs_is_stopped(monkeypatch):
    monkeypatch.setattr(launch, "SECONDS_TO_NOTICE", 0.3)
    monkeypatch.setattr(launch, "SECONDS_TO_STOP", 0.3)
    start = time.monotonic()
    hang = "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    status, message = run(f"sys.exit(5) if rank else [{hang.replace('; ', ', ')}]")
    assert (status, message) == (5, "rank 1 of 2 ended with status 5")
    assert time.monotonic() - start < 20


def test_a_request_to_stop_is_passed_on():
    parent = os.getpid()
    text = f"""
signal.signal(signal.SIGTERM, lambda *_: (report('stopped', 130), sys.exit(130)))
if rank == 1:
    time.sleep(0.3)
    os.kill({parent}, signal.SIGTERM)
time.sleep(60)
"""
    handler = signal.getsignal(signal.SIGTERM)
    assert run(text) == (130, "stopped")
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.parametrize(
    ("devices", "accelerator", "want"),
    [
        (1, "cpu", 1),
        (3, "cpu", 3),
        ("2", "cpu", 2),
        ("auto", "cpu", 1),
        (-1, "cpu", 1),
        ("1,", "cuda", 1),
    ],
)
def test_devices_are_counted(devices, accelerator, want):
    options = TrainerConfig(devices=devices, accelerator=accelerator)
    assert launch.count_devices(options) == want


def test_devices_by_number_are_refused():
    with pytest.raises(RecipeError, match=r"trainer.devices = '2,3': a number is wanted"):
        launch.count_devices(TrainerConfig(devices="2,3"))


def test_what_may_be_given_with_resume(tmp_path):
    assert rewrite(["--resume", "run", "--devices", "2", "--trainer.timeout=5.5"]) == [
        "--resume",
        "run",
        "--place",
        '{"devices": 2, "timeout": 5.5}',
    ]
    assert rewrite(["--resume=run"]) == ["--resume", "run"]
    with pytest.raises(UserError, match=r"--epochs cannot be given, only --trainer.accelerator, "):
        rewrite(["--resume", "run", "--epochs", "5"])
    (tmp_path / "config.yaml").write_text("trainer: {devices: 4, threads: 2}\n")
    recipe = read_recipe(tmp_path, {"devices": 1})
    assert (recipe.trainer.devices, recipe.trainer.threads) == (1, 2)
    with pytest.raises(RecipeError, match=r"trainer.precision belongs to the run; only trainer\."):
        read_recipe(tmp_path, {"precision": "bf16-mixed"})


def test_who_is_silent(monkeypatch):
    shared = ValueError("all know it")
    shared.shared_by_all_ranks = True
    monkeypatch.delenv("RANK", raising=False)
    assert not launch.is_silent(shared)
    monkeypatch.setenv("RANK", "1")
    assert launch.is_silent(shared)
    assert launch.is_silent(KeyboardInterrupt())
    assert launch.is_silent(ValueError("before the processes are connected: rank 0 says it"))


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize(("num_images", "batch_size"), [(53, 16), (48, 16), (50, 16), (5, 16)])
def test_plan_divides_batches_and_weighs_images(num_images, batch_size, world_size):
    plan = BatchPlan(num_images, batch_size, world_size)
    shares = [
        [plan.share(batch, rank) for rank in range(world_size)] for batch in range(plan.num_batches)
    ]
    assert sum(map(sum, shares)) == plan.num_used
    assert all(min(share) >= 1 for share in shares)
    rest = num_images % batch_size
    is_dropped = num_images > batch_size and rest < 2 * world_size
    assert plan.num_used == num_images - (rest if is_dropped else 0)
    for accumulate in (1, 2, 3):
        for first in range(0, plan.num_batches, accumulate):
            step = range(first, min(first + accumulate, plan.num_batches))
            images = sum(plan.size(batch) for batch in step)
            for batch in step:
                for rank in range(world_size):
                    # Averaged over processes, divided by `accumulate`, per image of the share:
                    weight = plan.weight(batch, rank, accumulate)
                    per_image = weight / plan.share(batch, rank) / world_size / accumulate
                    assert per_image == pytest.approx(1 / images)


def test_plan_stops_where_training_stops():
    plan = BatchPlan(64, 16)
    assert [plan.weight(batch, 0, 2, limit=3) for batch in range(3)] == [1.0, 1.0, 2.0]


def test_plan_that_cannot_be():
    with pytest.raises(DataError, match=r"with 3 processes a multiple of 3 is wanted"):
        BatchPlan(100, 16, 3)
    with pytest.raises(DataError, match=r"3 training images are too few for 4 processes"):
        BatchPlan(3, 16, 4)
