"""Importing the kit is quick and pulls in nothing heavy."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

import medvlp_kit

TIMED = "import time; start = time.perf_counter(); import medvlp_kit; print(time.perf_counter() - start)"
HEAVY = ("torch", "timm", "transformers", "matplotlib", "pandas", "numpy")


def python(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True).stdout


def test_import_takes_less_than_a_third_of_a_second():
    # the best of a few: what else the machine does must not decide
    assert min(float(python("-c", TIMED)) for _ in range(4)) <= 0.3


def test_import_brings_in_nothing_heavy():
    loaded = python("-c", "import sys, medvlp_kit, medvlp_kit.study, medvlp_kit.budget; print(*sys.modules)").split()
    assert not set(HEAVY) & set(loaded)


def test_help_is_quick_and_needs_no_torch():
    def seconds() -> float:
        start = time.perf_counter()
        assert "pretrain" in python("-m", "medvlp_kit.cli", "--help")
        return time.perf_counter() - start

    assert min(seconds() for _ in range(4)) < 0.5
    loaded = python("-c", "import sys, medvlp_kit.cli; print(*sys.modules)").split()
    assert not set(HEAVY) & set(loaded)


def test_submodules_come_when_named():
    assert medvlp_kit.errors.KitError is not None
    with pytest.raises(AttributeError, match="no attribute 'phantom'"):
        _ = medvlp_kit.phantom
