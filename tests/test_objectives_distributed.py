"""Global losses do not depend on how many processes share the batch, whole or in chunks."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from objectives_worker import OBJECTIVES
from safetensors.torch import load_file

WORKER = Path(__file__).with_name("objectives_worker.py")


def test_two_processes_find_the_losses_and_gradients_of_one(tmp_path):
    for processes in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run([*command, str(WORKER), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (load_file(tmp_path / f"found-{processes}.safetensors") for processes in (1, 2))
    assert one.keys() == two.keys()
    for objective in OBJECTIVES:
        names = [name for name in one if name.startswith(f"{objective}/")]
        largest = max(one[name].abs().max().item() for name in names if not name.endswith("/loss"))
        assert largest > 1e-3  # not a comparison of zeros
        for name in names:
            options = dict(rtol=2e-3, atol=1e-5 * largest + 1e-6, msg=lambda m, n=name: f"{n}: {m}")
            torch.testing.assert_close(two[name], one[name], **options)
