"""GLoRIA: words look for regions."""

from ..objectives import WeightedSum
from ..objectives.contrastive import InfoNCE
from ..objectives.local import WordRegion
from . import Recipe, register

gloria = register(
    Recipe(
        name="gloria",
        title="GLoRIA",
        paper="Huang et al., GLoRIA: A Multimodal Global-Local Representation Learning Framework (ICCV 2021)",
        year=2021,
        idea="align whole image and whole report; besides, every word must find its region",
        differs="trained from scratch; no augmentation; pieces of a word are summed as in the released code",
        objectives=("contrastive", "word-region"),
        objective=lambda model: WeightedSum(
            {"global": InfoNCE(), "local": WordRegion(vocabulary_size=model.text_encoder.vocabulary_size)}
        ),
        text_options={"pooling": "last4"},
        model_options={
            "projection_kind": "linear", "local_projection": True, "temperature": 0.1, "learnable_temperature": False,
        },  # fmt: skip
    )
)
