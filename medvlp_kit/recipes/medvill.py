"""MedViLL: one stream, one attention mask that serves both reading and writing."""

from ..objectives import WeightedSum
from ..objectives.masked_text import MaskedLanguage
from ..objectives.matching import ImageTextMatching
from . import Recipe, register

medvill = register(
    Recipe(
        name="medvill",
        title="MedViLL",
        paper="Moon et al., Multi-modal Understanding and Generation for Medical Images and Text via Vision-Language "
        "Pre-Training (IEEE JBHI 2022, arXiv 2105.11333)",
        year=2021,
        idea="masked words and matching in one stream, under the BAR mask: the image reads all, words read backwards",
        differs="the text passes a BERT first, which lets words see later ones; trained from scratch",
        objectives=("masked language", "matching"),
        objective=lambda model: WeightedSum(
            {
                "words": MaskedLanguage(model),
                "matching": ImageTextMatching(model.fusion.width, negatives="random", forbid="same_labels"),
            }
        ),
        scorer=lambda model, objective: objective.parts["matching"].scorer(),
        fusion="single_stream",
        fusion_options={"mask_style": "bidirectional_autoregressive"},
        model_options={"projection_kind": "linear"},
    )
)
