"""LoVT: sentences and regions of one study, with neighbours as half-right answers."""

from ..objectives import WeightedSum
from ..objectives.contrastive import InfoNCE
from ..objectives.sentence_region import SentenceRegion
from . import Recipe, register

lovt = register(
    Recipe(
        name="lovt",
        title="LoVT",
        paper="Müller et al., Joint Learning of Localized Representations from Medical Images and Reports (ECCV 2022)",
        year=2022,
        idea="sentences find regions and regions find sentences, against other parts of the same study only",
        differs="trained from scratch; sentences are not shuffled",
        objectives=("contrastive", "sentence-region"),
        objective=lambda model: WeightedSum(
            {
                "global": InfoNCE(image_weight=0.75),
                "local": SentenceRegion(model.embedding_width, model.text_encoder.vocabulary_size),
            },
            weights={"local": 1.5},  # 0.375 for each of the four terms, of which the objective is the mean
        ),
        text_options={"pooling": "max"},
        model_options={
            "projection_kind": "mlp", "local_projection": True, "temperature": 0.1, "learnable_temperature": False,
        },  # fmt: skip
    )
)
