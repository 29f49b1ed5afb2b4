"""Feature-space mixup: also tell mixtures of two pairs apart, where nothing was done to picture or report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..augment.mixing import mix_features
from ..distributed import gather
from ..errors import KitError
from . import Objective, ObjectiveOutput
from .contrastive import info_nce

if TYPE_CHECKING:
    from ..model import ForwardPass


class FeatureMixup(Objective):
    """(1 - weight) info_nce(image, text) + weight info_nce(mixed image, mixed text), at the model's temperature.

    The mixed pairs are `augment.mix_features` of the batch's own embeddings, so they cost no encoding. Chance comes
    from torch's default generator, which `pretrain` seeds at every step.
    """

    name = "contrastive with feature mixup"

    def __init__(self, *, weight: float = 0.5, image_weight: float = 0.5):
        super().__init__()
        if not 0 <= weight <= 1:
            raise KitError(f"FeatureMixup(weight={weight!r}): give a number from 0 to 1")
        self.weight, self.image_weight = weight, image_weight

    def forward(self, forward_pass: ForwardPass) -> ObjectiveOutput:
        image, text = gather(forward_pass.image_embedding), gather(forward_pass.text_embedding)  # (B, D)
        options = dict(temperature=forward_pass.model.temperature(), image_weight=self.image_weight)
        with torch.autocast(image.device.type, enabled=False):
            image, text = image.float(), text.float()
            plain = info_nce(image, text, **options)
            mixed = info_nce(*mix_features(image, text), **options)
        loss = (1 - self.weight) * plain + self.weight * mixed
        return ObjectiveOutput(loss, {"plain": plain.detach(), "mixed": mixed.detach()})
