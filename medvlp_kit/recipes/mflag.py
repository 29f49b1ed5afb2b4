"""M-FLAG: no negatives at all; the text stands still and the image's features are kept apart."""

from ..objectives.negative_free import AlignOrthogonal
from . import Recipe, register

mflag = register(
    Recipe(
        name="mflag",
        title="M-FLAG",
        paper="Liu et al., M-FLAG: Medical Vision-Language Pre-training with Frozen Language Models and Latent Space "
        "Geometry Optimization (MICCAI 2023)",
        year=2023,
        idea="draw the image to a frozen text, and keep its features orthogonal lest all become one",
        differs="the frozen text encoder is untrained, a random projection of words; M-FLAG's knows radiology reports",
        objectives=("alignment and orthogonality",),
        objective=lambda model: AlignOrthogonal(model),
        texts=("impression",),
        text_options={"pooling": "mean"},
        model_options={"projection_kind": "linear"},
    )
)
