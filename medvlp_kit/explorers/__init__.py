"""Explorers: every idea to see and touch. Each is a pure function from a state to HTML under a thin shell of controls.

    from medvlp_kit import explorers
    explorers.similarity_matrix(run, phantoms).show()

The function is tested without a kernel; the shell sets what it returns from `observe`. Nothing is fetched from anywhere.
"""

from __future__ import annotations

from importlib import import_module

# name: the module that defines it, called otherwise: an imported module hides an attribute of its own name. Imported when
# asked for: listing the names must not import torch.
EXPLORERS = {
    "attention_explorer": "attend",
    "embedding_explorer": "embed",
    "grounding_explorer": "ground",
    "masking_explorer": "masks",
    "phantom_studio": "studio",
    "prompt_bench": "bench",
    "retrieval_bench": "bench",
    "similarity_matrix": "matrix",
    "training_monitor": "monitor",
}


def __getattr__(name: str):
    """One explorer, imported on first use (PEP 562)."""
    if name in EXPLORERS:
        return getattr(import_module(f"{__name__}.{EXPLORERS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *EXPLORERS])
