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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """For parallel runs: the tests of a file share its fixtures, so one worker takes them all; lessons share nothing."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        alone = item.path.name == "test_notebooks.py"
        item.add_marker(pytest.mark.xdist_group(item.nodeid if alone else item.path.stem))


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
