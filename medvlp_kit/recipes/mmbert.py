"""MMBERT: hide medical words of the caption, restore them with the image's help."""

from ..objectives.masked_text import ALWAYS_MASK, MaskedLanguage
from . import Recipe, register

mmbert = register(
    Recipe(
        name="mmbert",
        title="MMBERT",
        paper="Khare et al., MMBERT: Multimodal BERT Pretraining for Improved Medical VQA (ISBI 2021)",
        year=2021,
        idea="hide medical words only, and restore them from the other words and the image in one stream",
        differs="the stream reads all patches; MMBERT reads five vectors, the mean of each of five stages of a ResNet",
        objectives=("masked language",),
        objective=lambda model: MaskedLanguage(model, which="medical", rule=ALWAYS_MASK),
        fusion="single_stream",
        model_options={"projection_kind": "linear"},
    )
)
