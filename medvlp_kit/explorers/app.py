"""A notebook of explorers as an app: served by Voila without its code, to this machine alone, and without any host beside."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from ..errors import KitError

HERE = Path(__file__).resolve().parent


def app_command(page: Path, arguments: Sequence[str] = ()) -> tuple[list[str], Mapping[str, str]]:
    """The command that serves `page`, with further arguments for voila, and the environment to run it in."""
    if find_spec("voila") is None:
        raise KitError('this needs Voila: pip install "medvlp-kit[explore]"; or open notebooks/explore.ipynb in JupyterLab')
    command = [sys.executable, "-m", "voila", str(page), "--strip_sources=True", "--Voila.ip=127.0.0.1", "--template=medvlp"]
    places = [str(HERE), *filter(None, [os.environ.get("JUPYTER_PATH")])]  # HERE/voila/templates holds the page's frame
    return [*command, *arguments], os.environ | {"JUPYTER_PATH": os.pathsep.join(places)}
