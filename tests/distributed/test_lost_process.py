"""A process that disappears ends the run: soon, with one line, and with a checkpoint to go on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import rank_jobs
import ranks

SECONDS = 30


@pytest.mark.parametrize("lost", [0, 1])
def test_the_others_end_and_say_so(digits, tmp_path, lost):
    """The first process as ever, the second where checkpoints are written after every step."""
    minutes, more = (None, "") if lost == 0 else (0, " and 1 batch of the next")
    straight = ranks.start(rank_jobs.train, digits, tmp_path / "straight", world_size=2)
    start = time.monotonic()
    outcomes = ranks.start(
        rank_jobs.train,
        digits,
        tmp_path / "run",
        world_size=2,
        at=[("kill", 1, 1, lost)],
        **{"trainer.checkpoint_minutes": minutes},
    ).outcomes()
    assert time.monotonic() - start < SECONDS
    assert outcomes[lost].exitcode == -signal.SIGKILL
    kind, text = outcomes[1 - lost].error
    assert kind == "PeerLostError"
    assert re.search(
        rf"rank {lost} \(process \d+\) of 2 ended before the others, in epoch 2 of 3; "
        rf"1 of 3 epochs{more} are kept; continue with: torchadder train --resume .*run$",
        text,
    ), text
    if lost == 1:
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert summary["status"] == f"stopped: {text}"
    resumed = ranks.run(rank_jobs.go_on, tmp_path / "run", digits, world_size=2)
    want = straight.outcomes()[0].value["digest"]
    assert [told["digest"] for told in resumed] == [want, want]


@pytest.mark.slow
def test_a_process_that_hangs_is_given_up(digits, tmp_path):
    options = {"trainer.timeout": 3.0}
    start = time.monotonic()
    processes = ranks.start(
        rank_jobs.train, digits, tmp_path / "run", world_size=2, at=[("hang", 1, 1, 1)], **options
    )
    first, second = processes.outcomes()
    assert time.monotonic() - start < SECONDS
    assert first.error[0] == "PeerLostError"
    assert first.error[1].startswith("the connection to another process of 2 was lost, in epoch 2")
    assert second.error[0] == "PeerLostError"  # when it woke up


def test_sigterm_ends_a_run_like_ctrl_c(digits, tmp_path):
    outcome = ranks.start(
        rank_jobs.train, digits, tmp_path / "run", at=[("terminate", 1, 1, 0)]
    ).outcomes()[0]
    assert outcome.error[0] == "KeyboardInterrupt"
    assert outcome.error[1].startswith("interrupted after 1 of 3 epochs; continue with: torchadder")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "interrupted"


def command(*arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [*arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def options(digits, output, epochs):
    small = f"--epochs {epochs} --batch-size 16 --accelerator cpu --threads 1"
    return ["mnist_lenet5bn_adder", *small.split(), "--data.source", digits, "--output", output]


def wait_for_epoch(folder, number, process):
    table = Path(folder) / "metrics.csv"
    while not table.is_file() or len(table.read_text().splitlines()) <= number:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def test_devices_2_and_a_killed_process(digits, tmp_path):
    """The command line as a user sees it: one headline, one line of error, nothing left over."""
    folder = tmp_path / "run"
    program = [sys.executable, "-m", "torchadder", "train"]
    process = command(*program, *map(str, options(digits, folder, 500)), "--devices", "2")
    wait_for_epoch(folder, 2, process)
    children = psutil.Process(process.pid).children()
    assert len(children) == 2
    children[1].kill()
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert output.count("2 processes, to") == 1
    assert [line.split("  ")[0] for line in output.splitlines()[1:3]] == [
        f"epoch {number}/500" for number in (1, 2)
    ]
    (line,) = errors.splitlines()
    assert line.startswith("torchadder: error: rank 1 (process ")
    assert f"continue with: torchadder train --resume {folder}" in line
    assert not any(child.is_running() for child in children)
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("num_nodes", [1, 2])
def test_torchrun(digits, tmp_path, num_nodes):
    """Two processes by torchrun: on one machine, and as two machines that meet on a port."""
    folder = tmp_path / "run"
    program = [sys.executable, "-m", "torch.distributed.run"]
    if num_nodes == 1:
        places = [["--standalone", "--nproc-per-node", "2"]]
    else:
        meeting = "--nnodes 2 --nproc-per-node 1 --master-addr 127.0.0.1 --master-port 29517"
        places = [[*meeting.split(), "--node-rank", str(node)] for node in range(2)]
    rest = ["-m", "torchadder", "train", *map(str, options(digits, folder, 2))]
    agents = [command(*program, *place, *rest) for place in places]
    outputs = [agent.communicate(timeout=200) for agent in agents]
    assert [agent.returncode for agent in agents] == [0] * num_nodes, outputs
    together = "".join(output for output, _ in outputs)
    assert together.count("2 processes, to") == 1
    assert together.count("run folder: ") == 1
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["epochs"]) == ("finished", 2)


@pytest.mark.slow
def test_torchrun_and_a_killed_process(digits, tmp_path):
    folder = tmp_path / "run"
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    rest = ["-m", "torchadder", "train", *map(str, options(digits, folder, 500))]
    agent = command(*program, "--nproc-per-node", "2", *rest)
    wait_for_epoch(folder, 2, agent)
    children = sorted(psutil.Process(agent.pid).children(), key=lambda child: child.pid)
    children[0].kill()
    _, errors = agent.communicate(timeout=60)
    assert agent.returncode != 0
    lines = [line for line in errors.splitlines() if line.startswith("torchadder: error: ")]
    assert len(lines) == 1
    assert f"continue with: torchadder train --resume {folder}" in lines[0]
    assert not any(child.is_running() for child in children)


@pytest.mark.slow
def test_the_processes_end_with_the_command(digits, tmp_path):
    folder = tmp_path / "run"
    program = [sys.executable, "-m", "torchadder", "train"]
    process = command(*program, *map(str, options(digits, folder, 5000)), "--devices", "2")
    wait_for_epoch(folder, 1, process)
    children = psutil.Process(process.pid).children()
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(children, timeout=SECONDS)
    assert not alive
