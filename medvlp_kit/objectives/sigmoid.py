"""A yes or no for every pair instead of a contest within the batch (SigLIP; Zhai et al., "Sigmoid loss for language image
pre-training", ICCV 2023).

No pair needs the others' scores. So the loss can be added up piece by piece in little memory, and a pair that is known
to be no negative can be left out or called a match without touching the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..distributed import gather
from ..errors import KitError, unknown
from . import Objective, ObjectiveOutput
from .false_negatives import RELATIONS, TREATMENTS, pair_labels

if TYPE_CHECKING:
    from ..model import ForwardPass


def sigmoid_loss(
    image: Tensor,
    text: Tensor,
    *,
    scale: Tensor | float,
    bias: Tensor | float,
    labels: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Do this image and this text belong together? Asked of every pair; the sum over pairs, divided by B:

        loss = -1/B sum_ij log sigmoid( z_ij (scale <image_i, text_j> + bias) )

    image, text: (B, D) unit vectors. labels z: (B, B) in {-1, 0, +1}, where 0 leaves a pair out; None is +1 on the
    diagonal and -1 elsewhere. scale: SigLIP's exp(t'). chunk: images taken at a time; their pieces of the (B, B) matrix
    are computed again for the backward pass and never kept, and value and gradient stay the same. Returns a scalar.

    With unrelated embeddings the loss starts near softplus(-bias) + (B - 1) softplus(bias): 10 at SigLIP's bias of -10.
    """
    if image.shape != text.shape or image.ndim != 2:
        raise KitError(f"image {tuple(image.shape)} and text {tuple(text.shape)}: both must be (B, D), of one shape")
    count = len(image)
    if labels is not None and labels.shape != (count, count):
        raise KitError(f"labels {tuple(labels.shape)}: give {(count, count)}, one of -1, 0 and +1 for each pair")
    if chunk is not None and chunk < 1:
        raise KitError(f"chunk is {chunk}: take at least one image at a time")

    def rows(first: int, part: Tensor, text: Tensor, scale: Tensor | float, bias: Tensor | float) -> Tensor:
        logits = scale * (part @ text.T) + bias  # (b, B)
        if labels is None:
            signs = torch.full_like(logits, -1.0)
            signs.diagonal(first).fill_(1.0)
        else:
            signs = labels[first : first + len(part)].to(logits.dtype)
        return (F.softplus(-signs * logits) * (signs != 0)).sum()

    if chunk is None or chunk >= count:
        return rows(0, image, text, scale, bias) / count
    pieces = [
        checkpoint(rows, first, image[first : first + chunk], text, scale, bias, use_reentrant=False, preserve_rng_state=False)
        for first in range(0, count, chunk)
    ]
    return torch.stack(pieces).sum() / count


class SigmoidContrastive(Objective):
    """`sigmoid_loss` of the global batch, with its own learned scale (exp(t'), t' from ln 10) and bias (from -10).

    same: which further pairs belong together, a name in `false_negatives.RELATIONS` or a function of the forward pass
    that gives (B, B) bool; None: no others. treat: such pairs are "ignored" (left out) or "positive" (called matches).
    chunk: as in the function; where the forward pass comes in chunks, theirs if none is given.
    """

    name = "sigmoid"

    def __init__(
        self,
        *,
        scale: float = 10.0,
        bias: float = -10.0,
        same: str | Callable[[ForwardPass], Tensor] | None = None,
        treat: str = "ignored",
        chunk: int | None = None,
    ):
        super().__init__()
        if isinstance(same, str) and same not in RELATIONS:
            raise unknown("relation", same, RELATIONS)
        if treat not in TREATMENTS:
            raise unknown("treatment of pairs that belong together", treat, TREATMENTS)
        if scale <= 0:
            raise KitError(f"scale is {scale}: choose it above 0")
        if chunk is not None and chunk < 1:
            raise KitError(f"chunk is {chunk}: take at least one image at a time")
        self.same, self.treat, self.chunk = RELATIONS.get(same, same), treat, chunk
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = nn.Parameter(torch.tensor(float(bias)))

    def forward(self, forward_pass: ForwardPass) -> ObjectiveOutput:
        image, text = gather(forward_pass.image_embedding), gather(forward_pass.text_embedding)  # (B, D)
        labels = None if self.same is None else pair_labels(self.same(forward_pass), treat=self.treat)
        chunk = self.chunk or getattr(forward_pass, "chunk", None)
        with torch.autocast(image.device.type, enabled=False):
            image, text, scale = image.float(), text.float(), self.log_scale.exp()
            loss = sigmoid_loss(image, text, scale=scale, bias=self.bias, labels=labels, chunk=chunk)
        with torch.no_grad():
            yes = (scale * (image * text).sum(dim=1) + self.bias).sigmoid()  # (B,)
        return ObjectiveOutput(loss, {"true pairs": yes.mean(), "scale": scale.detach(), "bias": self.bias.detach().clone()})
