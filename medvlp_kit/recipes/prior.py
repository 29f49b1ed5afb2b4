"""PRIOR: sentences become entries of a bank, and the image foretells them."""

from ..objectives import WeightedSum
from ..objectives.contrastive import InfoNCE
from ..objectives.prototype_bank import PrototypeBank
from . import Recipe, register

prior = register(
    Recipe(
        name="prior",
        title="PRIOR",
        paper="Cheng et al., PRIOR: Prototype Representation Joint Learning from Medical Images and Reports (ICCV 2023)",
        year=2023,
        idea="besides contrast, the image predicts the prototypical sentences of its report, in any order",
        differs="one stage of training instead of three; no local contrast, no redrawing of the image",
        objectives=("contrastive", "prototype bank"),
        objective=lambda model: WeightedSum({"global": InfoNCE(), "bank": PrototypeBank(model)}),
        text_options={"pooling": "max"},
        model_options={"projection_kind": "linear", "local_projection": True, "temperature": 0.07},
    )
)
