"""Probes: narrow questions to a model whose answer a good average can hide.

| probe | question | chance |
|---|---|---|
| `side_swap` | does the true side score higher than the other? | 1/2 |
| `negation` | does the true statement score higher than its denial? | 1/2 |
| `zone` | does the true zone score highest? | 1/3 |
| `severity_order` | are pictures in order of severity, by what the words say of it? | 1/2 |
| `crop_consistency` | is there less evidence for a finding once it is cut away? | 1/2 |
| `blank_image` | is there more evidence than in a picture that shows nothing? | 1/2 |

Each asks of single cases and compares within a case or within a finding, so that a bias towards some words earns nothing.
"""

from .blank import blank_image
from .cases import preference
from .crops import crop_consistency
from .negation import negation
from .severity import severity_order
from .sides import SIDES, one_sided, side_swap, swap_sides
from .zones import zone

__all__ = [
    "SIDES", "blank_image", "crop_consistency", "negation", "one_sided", "preference", "severity_order", "side_swap",
    "swap_sides", "zone",
]  # fmt: skip
