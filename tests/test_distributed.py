"""Two CPU processes train as one: the loss and the gradients of a global batch are those of a single process."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from medvlp_kit.run_folder import load_run

WORKER = Path(__file__).with_name("distributed_worker.py")


def launch(processes: int, out: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*command, str(WORKER), str(out)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_equal_one(tmp_path):
    launch(1, tmp_path)
    launch(2, tmp_path)
    one, two = (load_file(tmp_path / f"gradients-{n}.safetensors") for n in (1, 2))
    assert one.keys() == two.keys() and len(one) > 20
    torch.testing.assert_close(two["loss"], one["loss"], rtol=1e-5, atol=1e-6)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert max(one[name].abs().max() for name in one if name != "loss") > 1e-3  # not a comparison of zeros

    alone, together = (load_run(tmp_path / f"run-{n}") for n in (1, 2))
    losses = [torch.tensor(run.history["loss"].tolist()) for run in (alone, together)]
    assert len(losses[0]) == alone.steps == 4
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-3)
