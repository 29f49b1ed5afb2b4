"""ConVIRT: the CLIP template, before CLIP."""

from ..objectives.contrastive import InfoNCE
from . import Recipe, register

convirt = register(
    Recipe(
        name="convirt",
        title="ConVIRT",
        paper="Zhang et al., Contrastive Learning of Medical Visual Representations from Paired Images and Text (arXiv 2010.00747)",
        year=2020,
        idea="align an image with one random sentence of its report, in both directions, weighted towards image to text",
        objectives=("contrastive",),
        objective=lambda model: InfoNCE(image_weight=0.75),
        texts=("sentence",),
        text_options={"pooling": "max"},
        model_options={"projection_kind": "mlp", "temperature": 0.1, "learnable_temperature": False},
    )
)
