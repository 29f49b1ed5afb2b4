"""The exercise checks of every lesson: `checks.lesson_05.name(answer)` is `checks_05.name(answer)`."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec


def __getattr__(name: str):
    """The checks of one lesson, imported on first use (PEP 562)."""
    found = re.fullmatch(r"lesson_(\d\d)", name)
    module = f"{__package__}.checks_{found[1]}" if found else None
    if module and find_spec(module) is not None:
        return import_module(module)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
