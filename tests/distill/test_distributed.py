import subprocess
import sys

PROGRAM = """
import sys
import torch
import torch.distributed as dist
from torchadder.distill import LaplacianKernel

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
kernel = LaplacianKernel()
kernel((1.0, 3.0)[rank] * torch.tensor([[-1.0], [1.0]]))
print(kernel.sigma.item())
dist.destroy_process_group()
"""


def test_processes_start_with_one_scale(tmp_path):
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        printed = [worker.communicate(timeout=120)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    # Mean deviation over both processes' batches: 2 sigma^2 = (1 + 3) / 2.
    assert [float(text) for text in printed] == [1.0, 1.0]
