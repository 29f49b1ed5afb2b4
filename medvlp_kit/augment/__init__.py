"""Augmentation that knows what it does to the text.

A pair is an image and what is said of it. A *policy* changes pairs and says what it guarantees; the checker in
`checker.py` proves that on phantoms, by reading the augmented report and looking where the signs are now.

| policy | picture | text |
|---|---|---|
| `Intensity` | brightness, contrast, gamma, noise; nothing moves | unchanged |
| `CoupledFlip` | mirrored | left and right exchanged |
| `SidelessFlip` | mirrored | side words removed, mirrored or not |
| `Crop` | a square part, enlarged | sentences about what was cut are dropped |
| `ShuffleSentences` | unchanged | another order |
| `SampleSentences` | unchanged | fewer sentences, the same facts |
| `MixGen` | the mean of two | both reports, without denials that no longer hold |
| `BlindFlip`, `BlindCrop` | mirrored, cut | unchanged: the published habits, which guarantee nothing |

`Chain` applies policies one after another; `two_views` draws twice; `mix_features` mixes embeddings, not pixels.

    policy = Chain(CoupledFlip(), Intensity())
    pretrain("chexzero", phantoms, augment=policy)
"""

from __future__ import annotations

from importlib import import_module

_HOMES = {
    "Pairs": "pairs", "Policy": "pairs", "Chain": "pairs", "two_views": "pairs",
    "Intensity": "intensity",
    "BlindFlip": "flips", "CoupledFlip": "flips", "SidelessFlip": "flips", "flip": "flips",
    "drop_sides": "sides", "why_not_mirrored": "sides", "mirrored_text": "sides",
    "Crop": "crops", "BlindCrop": "crops", "crop": "crops",
    "ShuffleSentences": "sentence_level", "SampleSentences": "sentence_level", "facts": "sentence_level",
    "MixGen": "mixing", "mix_features": "mixing",
    "check": "checker", "Check": "checker", "prove": "checker",
}  # fmt: skip
__all__ = list(_HOMES)


def __getattr__(name: str):
    """Import a name on first use (PEP 562), so that reading this file imports no torch."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
