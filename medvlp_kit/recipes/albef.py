"""ALBEF and its medical relative MUMC: align before fusing, with a slow teacher and hard negatives."""

from ..objectives import WeightedSum
from ..objectives.masked_text import MaskedLanguage
from ..objectives.matching import ImageTextMatching
from ..objectives.momentum import MomentumContrast
from . import Recipe, register

albef = register(
    Recipe(
        name="albef",
        title="ALBEF / MUMC",
        paper="Li et al., Align before Fuse (NeurIPS 2021); Li et al., Masked Vision and Language Pre-training with "
        "Unimodal and Multimodal Contrastive Losses for Medical VQA (MICCAI 2023)",
        year=2021,
        idea="contrast against a momentum teacher first; then the text looks at the image, for words and for matching",
        differs="of MUMC neither contrast within a modality nor hidden patches; the teacher softens the contrast alone",
        objectives=("momentum contrast", "masked language", "matching"),
        objective=lambda model: WeightedSum(
            {
                "contrast": MomentumContrast(model, ramp_steps=300),
                "words": MaskedLanguage(model),
                "matching": ImageTextMatching(model.fusion.width),
            }
        ),
        texts=("impression",),
        fusion="dual_stream",
        fusion_options={"variant": "text_to_image"},
        text_options={"pooling": "cls"},
        model_options={"projection_kind": "linear", "temperature": 0.07},
    )
)
