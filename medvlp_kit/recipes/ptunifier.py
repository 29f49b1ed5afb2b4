"""PTUnifier: prompts stand in for a missing modality, so one model serves one or two."""

from ..objectives import WeightedSum
from ..objectives.contrastive import InfoNCE
from ..objectives.masked_text import MaskedLanguage
from ..objectives.matching import ImageTextMatching
from . import Recipe, register

ptunifier = register(
    Recipe(
        name="ptunifier",
        title="PTUnifier",
        paper="Chen et al., Towards Unifying Medical Vision-and-Language Pre-training via Soft Prompts (ICCV 2023)",
        year=2023,
        idea="masked words, matching and contrast; a pool of prompts is drawn from where image or text is missing",
        differs="the contrast is between the encoders' own vectors; trained from scratch",
        objectives=("masked language", "matching", "contrastive"),
        objective=lambda model: WeightedSum(
            {
                "words": MaskedLanguage(model),
                "matching": ImageTextMatching(model.fusion.width, negatives="random"),
                "contrast": InfoNCE(),
            },
            weights={"matching": 0.5, "contrast": 0.1},
        ),
        fusion="single_stream",
        fusion_options={"missing": "prompt_pool"},
        text_options={"pooling": "max"},
        model_options={"projection_kind": "linear", "temperature": 0.1, "learnable_temperature": False},
    )
)
