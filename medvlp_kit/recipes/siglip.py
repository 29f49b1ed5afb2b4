"""SigLIP: a yes or no for every pair."""

from ..objectives.sigmoid import SigmoidContrastive
from . import Recipe, register

siglip = register(
    Recipe(
        name="siglip",
        title="SigLIP",
        paper="Zhai et al., Sigmoid Loss for Language Image Pre-Training (ICCV 2023, arXiv 2303.15343)",
        year=2023,
        idea="ask of every pair by itself whether it belongs together; the batch is no contest",
        differs="of the Impression, as CheXzero's, to be compared with it",
        objectives=("sigmoid",),
        objective=lambda model: SigmoidContrastive(),
        texts=("impression",),
        text_length=40,
        text_options={"pooling": "max"},
        model_options={"projection_kind": "linear", "learnable_temperature": False},
    )
)
