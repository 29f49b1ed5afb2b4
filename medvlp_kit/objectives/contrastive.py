"""Global contrastive learning: a whole image against whole texts (InfoNCE; van den Oord 2018, ConVIRT 2020, CLIP 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import gather
from ..errors import KitError
from . import Objective, ObjectiveOutput

if TYPE_CHECKING:
    from ..model import ForwardPass


def info_nce(image: Tensor, text: Tensor, *, temperature: Tensor | float, image_weight: float = 0.5) -> Tensor:
    """Each image must find its own text among the batch, and each text its own image.

    With s_ij = <image_i, text_j> / temperature and w = `image_weight`,

        loss = w * mean_i[ -log softmax_j(s_ij)[i] ] + (1 - w) * mean_j[ -log softmax_i(s_ij)[j] ]

    image, text: (B, D) unit vectors, row i of one belonging to row i of the other. w = 0.5 is CLIP (Radford 2021),
    w = 0.75 ConVIRT (Zhang 2020). Before training the loss is near ln B. Returns a scalar.
    """
    if image.shape != text.shape or image.ndim != 2:
        raise KitError(f"image {tuple(image.shape)} and text {tuple(text.shape)}: both must be (B, D), of one shape")
    if not 0 <= image_weight <= 1:
        raise KitError(f"image_weight is {image_weight}: choose it between 0 and 1")
    logits = image @ text.T / temperature  # (B, B)
    target = torch.arange(len(logits), device=logits.device)  # (B,)
    image_to_text = F.cross_entropy(logits, target)
    text_to_image = F.cross_entropy(logits.T, target)
    return image_weight * image_to_text + (1 - image_weight) * text_to_image


class InfoNCE(Objective):
    """`info_nce` on the pooled embeddings of the global batch, at the model's own temperature."""

    name = "contrastive"

    def __init__(self, *, image_weight: float = 0.5):
        super().__init__()
        self.image_weight = image_weight

    def forward(self, forward_pass: ForwardPass) -> ObjectiveOutput:
        image, text = gather(forward_pass.image_embedding), gather(forward_pass.text_embedding)  # (B, D)
        temperature = forward_pass.model.temperature()
        with torch.autocast(image.device.type, enabled=False):  # similarities divided by 0.05 need all their digits
            image, text = image.float(), text.float()
            loss = info_nce(image, text, temperature=temperature, image_weight=self.image_weight)
        with torch.no_grad():
            hits = (image @ text.T).argmax(dim=1) == torch.arange(len(image), device=image.device)  # (B,)
        return ObjectiveOutput(loss, {"batch accuracy": hits.float().mean(), "temperature": temperature.detach()})
