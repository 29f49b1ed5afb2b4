"""Global contrastive learning: a whole image against whole texts (InfoNCE; van den Oord 2018, ConVIRT 2020, CLIP 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..distributed import gather
from ..errors import KitError
from . import Objective, ObjectiveOutput
from .sigmoid import SigmoidContrastive, sigmoid_loss
from .soft_targets import DebiasedContrastive, SoftTargetContrastive, debiased_nce, soft_target_nce

if TYPE_CHECKING:
    from ..model import ForwardPass

# global contrastive losses of every kind are found here, whichever file holds them
__all__ = [
    "InfoNCE", "info_nce", "SigmoidContrastive", "sigmoid_loss", "SoftTargetContrastive", "soft_target_nce",
    "DebiasedContrastive", "debiased_nce",
]  # fmt: skip


def info_nce(
    image: Tensor, text: Tensor, *, temperature: Tensor | float, image_weight: float = 0.5, chunk: int | None = None
) -> Tensor:
    """Each image must find its own text among the batch, and each text its own image.

    With s_ij = <image_i, text_j> / temperature and w = `image_weight`,

        loss = w * mean_i[ -log softmax_j(s_ij)[i] ] + (1 - w) * mean_j[ -log softmax_i(s_ij)[j] ]

    image, text: (B, D) unit vectors, row i of one belonging to row i of the other. w = 0.5 is CLIP (Radford 2021),
    w = 0.75 ConVIRT (Zhang 2020). Before training the loss is near ln B. chunk: rows of s worked on at a time; they are
    computed again for the backward pass, (B, B) is never kept, value and gradient stay the same. Returns a scalar.
    """
    if image.shape != text.shape or image.ndim != 2:
        raise KitError(f"image {tuple(image.shape)} and text {tuple(text.shape)}: both must be (B, D), of one shape")
    if not 0 <= image_weight <= 1:
        raise KitError(f"image_weight is {image_weight}: choose it between 0 and 1")
    if chunk is not None:
        own = (image * text).sum(dim=1) / temperature  # (B,)
        image_to_text = (_log_sums(image, text, temperature, chunk) - own).mean()
        text_to_image = (_log_sums(text, image, temperature, chunk) - own).mean()
        return image_weight * image_to_text + (1 - image_weight) * text_to_image
    logits = image @ text.T / temperature  # (B, B)
    target = torch.arange(len(logits), device=logits.device)  # (B,)
    image_to_text = F.cross_entropy(logits, target)
    text_to_image = F.cross_entropy(logits.T, target)
    return image_weight * image_to_text + (1 - image_weight) * text_to_image


def _log_sums(asks: Tensor, keys: Tensor, temperature: Tensor | float, chunk: int) -> Tensor:
    """log sum_j exp(<asks_i, keys_j> / temperature), (B,), from `chunk` rows at a time."""
    if chunk < 1:
        raise KitError(f"chunk is {chunk}: take at least one row at a time")
    rows = lambda part, keys, temperature: (part @ keys.T / temperature).logsumexp(dim=1)  # noqa: E731
    options = dict(use_reentrant=False, preserve_rng_state=False)
    return torch.cat([checkpoint(rows, part, keys, temperature, **options) for part in asks.split(chunk)])


class InfoNCE(Objective):
    """`info_nce` on the pooled embeddings of the global batch, at the model's own temperature.

    Where the forward pass comes in chunks, so does the similarity matrix.
    """

    name = "contrastive"

    def __init__(self, *, image_weight: float = 0.5):
        super().__init__()
        self.image_weight = image_weight

    def forward(self, forward_pass: ForwardPass) -> ObjectiveOutput:
        image, text = gather(forward_pass.image_embedding), gather(forward_pass.text_embedding)  # (B, D)
        temperature = forward_pass.model.temperature()
        chunk = getattr(forward_pass, "chunk", None)
        with torch.autocast(image.device.type, enabled=False):  # similarities divided by 0.05 need all their digits
            image, text = image.float(), text.float()
            loss = info_nce(image, text, temperature=temperature, image_weight=self.image_weight, chunk=chunk)
        with torch.no_grad():
            nearest = torch.cat([(part @ text.T).argmax(dim=1) for part in image.split(chunk or len(image))])  # (B,)
            hits = nearest == torch.arange(len(image), device=image.device)
        return ObjectiveOutput(loss, {"batch accuracy": hits.float().mean(), "temperature": temperature.detach()})
