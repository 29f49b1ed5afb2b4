"""CoCa and its pathology relative CONCH: contrast and captioning in one pass."""

from ..objectives.coca import CoCa
from . import Recipe, register

coca = register(
    Recipe(
        name="coca",
        title="CoCa / CONCH",
        paper="Yu et al., CoCa: Contrastive Captioners are Image-Text Foundation Models (arXiv 2205.01917); "
        "Lu et al., A visual-language foundation model for computational pathology (Nature Medicine 2024)",
        year=2022,
        idea="the lower half of a causal text tower is aligned with the image, the upper half writes the caption",
        differs="trained from scratch; CONCH starts from iBOT and a language model",
        objectives=("coca",),
        objective=lambda model: CoCa(model),
        text_encoder="gpt2",
        texts=("impression",),
        text_options={"pooling": "eos"},
        image_options={"pooling": "attention"},
        model_options={"projection_kind": "linear"},
    )
)
