"""What every test shares: no network, no windows, and the folder of real data sets where there is one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medvlp_kit.kernel import forbid_network

ROOT = Path(__file__).resolve().parents[1]

os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("MEDVLP_BUDGET", None)  # a test that wants a budget says so
forbid_network()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """For `--dist loadscope`: the tests of a file share its fixtures, so one worker takes them all; lessons share nothing.

    The marker `xdist_group` would say so too, but pytest-xdist 3.8 loses it under pytest 9.2.
    """
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", 1)[0]
            return nodeid if file.endswith("test_notebooks.py") else file

    return ByFile(config, log)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout, with its notebooks and settings."""
    return ROOT


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data sets (MEDVLP_DATA); without it the test is skipped."""
    folder = os.environ.get("MEDVLP_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("set MEDVLP_DATA to the folder of real data sets to run this test")
    return Path(folder)
