"""Local objectives, prototypes and gradient balancing on two processes, with texts of unequal length, equal one."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

WORKER = Path(__file__).with_name("local_worker.py")


def launch(processes: int, out: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(WORKER)]
    started = [
        subprocess.Popen([*command, str(rank), str(processes), str(out / f"meet-{processes}"), str(out)], env=environment)
        for rank in range(processes)
    ]
    assert [process.wait(timeout=120) for process in started] == [0] * processes


def test_two_processes_equal_one(tmp_path):
    launch(1, tmp_path)
    launch(2, tmp_path)
    one = load_file(tmp_path / "1-0.safetensors")
    for rank in range(2):
        two = load_file(tmp_path / f"2-{rank}.safetensors")
        assert one.keys() == two.keys() and len(one) > 12
        for name in one:
            torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert one["token_projection.weight"].abs().max() > 1e-3 and one["parts.prototypes.prototypes"].abs().max() > 1e-3
