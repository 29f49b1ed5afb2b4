"""MedKLIP and KAD: findings asked for by name, taught by what the report states of each."""

from ..objectives import WeightedSum
from ..objectives.contrastive import InfoNCE
from ..objectives.knowledge import EntityQueries
from . import Recipe, register

medklip = register(
    Recipe(
        name="medklip",
        title="MedKLIP",
        paper="Wu et al., MedKLIP: Medical Knowledge Enhanced Language-Image Pre-Training (ICCV 2023, arXiv 2301.02228)",
        year=2023,
        idea="one query for each finding, made of its description, asks the patches whether and where",
        differs="the queries' text encoder learns with the rest; MedKLIP's comes pretrained and frozen",
        objectives=("entity queries",),
        objective=lambda model: EntityQueries(model),
        findings=True,
        text_options={"pooling": "mean"},  # from [CLS] of a fresh encoder all queries would start alike
        model_options={"projection_kind": "linear"},
    )
)

kad = register(
    Recipe(
        name="kad",
        title="KAD",
        paper="Zhang et al., Knowledge-enhanced visual-language pre-training on chest radiology images (Nature "
        "Communications 2023, arXiv 2302.14042)",
        year=2023,
        idea="entity queries as in MedKLIP, and contrast between image and report",
        differs="no knowledge graph to pretrain the text encoder on; contrast with the Impression, not an entity list",
        objectives=("entity queries", "contrastive"),
        objective=lambda model: WeightedSum({"queries": EntityQueries(model), "global": InfoNCE()}),
        texts=("impression",),
        findings=True,
        text_options={"pooling": "mean"},
        model_options={"projection_kind": "linear"},
    )
)
