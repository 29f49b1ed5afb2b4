"""A page of all explorers runs without a screen, again and again: nothing hangs, no error hides.

MEDVLP_EXPLORER_RUNS says how often (2 unless it is set; 30 before a release).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest

from medvlp_kit import audit

PAGE = Path(__file__).resolve().parents[1] / "notebooks" / "explore.ipynb"
RUNS = int(os.environ.get("MEDVLP_EXPLORER_RUNS", "2"))
SECONDS = 300


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("number", range(RUNS))
def test_explorers_run_headless(number, tmp_path):
    """papermill and nbmake take turns."""
    if number % 2 == 0:
        out = tmp_path / "out.ipynb"
        papermill.execute_notebook(
            PAGE, out, parameters={"budget": "tiny"}, progress_bar=False, execution_timeout=SECONDS, cwd=str(tmp_path)
        )  # fmt: skip
        document = nbformat.read(out, as_version=4)
        faults = [fault for fault in audit.audit(document, budget="tiny", seconds=0) if "time" not in str(fault)]
        assert not faults, "\n".join(map(str, faults))
        return
    command = [
        sys.executable, "-m", "pytest", "--nbmake", f"--nbmake-timeout={SECONDS}", "-p", "no:xdist", "-p", "no:cacheprovider", "-q",
        str(PAGE),
    ]  # fmt: skip
    surroundings = os.environ | {"MEDVLP_BUDGET": "tiny"}
    ended = subprocess.run(command, cwd=tmp_path, env=surroundings, capture_output=True, text=True, timeout=SECONDS)
    assert ended.returncode == 0, ended.stdout[-3_000:]
