"""M3AE: masked words and masked patches meet in a dual stream; matching beside."""

from ..objectives import WeightedSum
from ..objectives.joint_masked import JointMasked
from ..objectives.matching import ImageTextMatching
from . import Recipe, register

m3ae = register(
    Recipe(
        name="m3ae",
        title="M3AE",
        paper="Chen et al., Multi-modal Masked Autoencoders for Medical Vision-and-Language Pre-training (MICCAI 2022)",
        year=2022,
        idea="hide much of the image and little of the text; draw pixels from an early layer, words from the last",
        differs="trained from scratch on small images; M3AE starts from CLIP and RoBERTa",
        objectives=("joint masked", "matching"),
        objective=lambda model: WeightedSum(
            {"masked": JointMasked(model), "matching": ImageTextMatching(model.fusion.width, negatives="random")}
        ),
        scorer=lambda model, objective: objective.parts["matching"].scorer(),
        image_encoder="kit_vit",
        fusion="dual_stream",
        fusion_options={"variant": "co_attention"},
        model_options={"projection_kind": "linear"},
    )
)
