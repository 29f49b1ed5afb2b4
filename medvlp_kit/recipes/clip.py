"""CLIP and its closest medical relative: linear heads, a learnable temperature, both directions weighed alike."""

from ..objectives.contrastive import InfoNCE
from . import Recipe, register

clip = register(
    Recipe(
        name="clip",
        title="CLIP",
        paper="Radford et al., Learning Transferable Visual Models From Natural Language Supervision (arXiv 2103.00020)",
        year=2021,
        idea="align the image with the whole report; the temperature is learned",
        objectives=("contrastive",),
        objective=lambda model: InfoNCE(),
        texts=("report",),
        text_options={"pooling": "mean"},
        model_options={"projection_kind": "linear", "temperature": 0.07},
    )
)

chexzero = register(
    Recipe(
        name="chexzero",
        title="CheXzero",
        paper="Tiu et al., Expert-level detection of pathologies from unannotated chest X-ray images (Nature BME 2022)",
        year=2022,
        idea="CLIP on the Impression section alone: short, and made of what the reader thought worth saying",
        objectives=("contrastive",),
        objective=lambda model: InfoNCE(),
        texts=("impression",),
        text_length=40,  # few impressions are longer, and one long text makes its whole batch wait
        text_options={"pooling": "max"},
        model_options={"projection_kind": "linear", "temperature": 0.07},
    )
)
