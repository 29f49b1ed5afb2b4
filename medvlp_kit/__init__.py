"""medvlp_kit: the runnable survey of medical vision-language pretraining.

The package is lazy: ``import medvlp_kit`` imports neither torch nor timm nor transformers. A submodule is imported
the first time it is named, so ``medvlp_kit.phantoms`` works without a separate import statement.
"""

from importlib import import_module
from importlib.util import find_spec

__version__ = "0.1.0"


def __getattr__(name: str):
    """Import a submodule on first use (PEP 562)."""
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
