"""MRM: restore a half-hidden report with the help of a mostly hidden image, and the image at twice its resolution."""

from ..objectives.joint_masked import MaskedRecord
from ..objectives.masked_image import SHARP_VIEW
from . import Recipe, register

mrm = register(
    Recipe(
        name="mrm",
        title="MRM",
        paper="Zhou et al., Advancing Radiograph Representation Learning with Masked Record Modeling (ICLR 2023)",
        year=2023,
        idea="what half a report lacks must come from the image's mean vector; the image is redrawn sharper than seen",
        differs="a text encoder reads the masked report first; trained from scratch",
        objectives=("masked record",),
        objective=lambda model: MaskedRecord(model),
        views=("frontal", SHARP_VIEW),
        image_encoder="kit_vit",
        model_options={"projection_kind": "linear"},
    )
)
