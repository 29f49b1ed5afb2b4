"""IMITATE: the Findings with all levels of the image, the Impression with the last; related studies are half right."""

import torch

from ..objectives.false_negatives import smoothed_targets
from ..objectives.hierarchy import HierarchicalAlignment
from . import Recipe, register


def related(text: torch.Tensor) -> torch.Tensor:
    """text (B, D) -> targets (B, B), smoothed by how much the texts' embeddings correlate."""
    return smoothed_targets(torch.corrcoef(text.float()))


imitate = register(
    Recipe(
        name="imitate",
        title="IMITATE",
        paper="Liu et al., IMITATE: Clinical Prior Guided Hierarchical Vision-Language Pre-training (IEEE TMI 2024)",
        year=2023,
        idea="describing text meets several levels of the image, concluding text the last; correlated texts share blame",
        differs="the texts' encoder learns with the rest, so correlations say little at first",
        objectives=("hierarchy",),
        objective=lambda model: HierarchicalAlignment(model, targets=related),
        texts=("impression", "findings"),
        text_options={"pooling": "max"},
        model_options={"projection_kind": "linear", "temperature": 0.07},
    )
)
