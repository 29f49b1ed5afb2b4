"""Every lesson runs at the tiny budget with the audit; its committed outputs belong to its code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from medvlp_kit import audit, runner
from medvlp_kit import notebook as documents

LESSONS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
SLACK = 3.0  # the suite's other worker shares the cores


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_lesson_runs_at_the_tiny_budget(path, tmp_path):
    runner.run(path, budget="tiny", out=tmp_path, slack=SLACK).check()


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_committed_outputs_belong_to_the_code_and_pass_the_audit(path):
    document = documents.read(path)
    assert documents.stale(document) == "", f"make notebooks runs {path.name} again"
    record = document.metadata["medvlp"]
    faults = audit.audit(document, budget="laptop", seconds=record["seconds"])
    assert not faults, "\n".join(map(str, faults))


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_committed_copy_is_free_of_noise(path):
    document = documents.read(path)
    assert documents.publishable(document) == document


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_stated_memory_covers_what_was_measured(path):
    from medvlp_kit.course import contract

    document = documents.read(path)
    stated = contract.stated(document)["laptop"]["memory_gb"]
    assert document.metadata["medvlp"]["peak_memory_mb"] <= 1_000 * stated


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", LESSONS[:1], ids=lambda path: path.stem)
def test_nbmake_runs_the_same_notebook(path):
    """A reader's own nbmake needs no parameters: the budget comes from the environment."""
    command = [sys.executable, "-m", "pytest", "--nbmake", "--nbmake-timeout=600", "-p", "no:xdist", "-q", str(path)]
    surroundings = os.environ | {"MEDVLP_BUDGET": "tiny"}
    ended = subprocess.run(command, cwd=path.parent, env=surroundings, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-3_000:]
