"""Built-in imaging worlds with exact ground truth. Teaching phantoms, not clinical images."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

_HOMES = {
    "Phantoms": "collection",
    "World": "sampling",
    "Scene": "scene",
    "Sign": "scene",
    "Change": "scene",
    "FINDINGS": "scene",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    """Import a submodule or one of the names above on first use (PEP 562), so that torch is not read before."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
