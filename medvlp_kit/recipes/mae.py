"""Masked autoencoding of the image alone, as several systems do before or beside the text."""

from ..objectives.masked_image import MaskedAutoencoder
from . import Recipe, register

mae = register(
    Recipe(
        name="mae",
        title="MAE",
        paper="He et al., Masked Autoencoders Are Scalable Vision Learners (CVPR 2022, arXiv 2111.06377)",
        year=2021,
        idea="see a quarter of the patches, draw the others; no text at all, so nothing is aligned",
        objectives=("masked image",),
        objective=lambda model: MaskedAutoencoder(model),
        image_encoder="kit_vit",
        model_options={"projection_kind": "linear"},
    )
)
