"""MedCLIP: texts are right as far as they share findings with the image."""

from ..objectives.soft_targets import SoftTargetContrastive
from . import Recipe, register

medclip = register(
    Recipe(
        name="medclip",
        title="MedCLIP",
        paper="Wang et al., MedCLIP: Contrastive Learning from Unpaired Medical Images and Text (EMNLP 2022)",
        year=2022,
        idea="the answer is a distribution over texts by the findings they share with the image: no pairs needed",
        differs="labels come with the studies, not from a labeller; images and texts of one study stay in one batch",
        objectives=("soft contrastive",),
        objective=lambda model: SoftTargetContrastive("labels"),
        texts=("sentence",),
        text_options={"pooling": "mean"},
        model_options={"projection_kind": "linear", "temperature": 0.07},
    )
)
