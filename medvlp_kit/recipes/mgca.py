"""MGCA: three granularities, from study over token to disease."""

from ..objectives import WeightedSum
from ..objectives.contrastive import InfoNCE
from ..objectives.prototypes import PrototypeAlignment
from ..objectives.token_alignment import TokenAlignment
from . import Recipe, register

mgca = register(
    Recipe(
        name="mgca",
        title="MGCA",
        paper="Wang et al., Multi-Granularity Cross-modal Alignment for Generalized Medical Visual Representation "
        "Learning (NeurIPS 2022)",
        year=2022,
        idea="align study with study, token with patch, and both with prototypes that stand for diseases",
        differs="trained from scratch; 64 prototypes instead of 500, for batches are small",
        objectives=("contrastive", "token alignment", "prototypes"),
        objective=lambda model: WeightedSum(
            {
                "study": InfoNCE(),
                "token": TokenAlignment(),
                "disease": PrototypeAlignment(model.embedding_width, frozen_steps=50),
            }
        ),
        text_options={"pooling": "mean"},
        model_options={
            "projection_kind": "linear", "local_projection": True, "temperature": 0.07, "learnable_temperature": False,
        },  # fmt: skip
    )
)
