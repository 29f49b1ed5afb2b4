"""SAT: pairs are sorted into matches, doubtful ones and negatives before they are contrasted."""

from ..objectives.soft_targets import SoftTargetContrastive
from . import Recipe, register

sat = register(
    Recipe(
        name="sat",
        title="SAT",
        paper="Liu et al., Improving Medical Vision-Language Contrastive Pretraining with Semantics-aware Triage "
        "(IEEE TMI 2023)",
        year=2023,
        idea="reports that say the same are matches too, reports that nearly do are left out",
        differs="similarity of words and percentiles, where SAT takes a pretrained encoder's cosine and fixed values",
        objectives=("soft contrastive",),
        objective=lambda model: SoftTargetContrastive("triage"),
        texts=("impression",),
        text_options={"pooling": "max"},
        model_options={"projection_kind": "linear", "temperature": 0.07},
    )
)
