"""Prototypes: images and texts of different patients that show the same disease share a cluster (MGCA's cross-modal
prototype alignment; Wang et al., NeurIPS 2022; after SwAV, Caron et al., NeurIPS 2020).

With K unit prototypes c_k, each image v and text t is assigned to clusters, q_v and q_t, so that all clusters are used
alike; each modality must then predict the assignment of the other:

    q = sinkhorn(<., c_k>),     p_k = softmax_k(<., c_k> / temperature)
    loss = -1/2 [ mean_i sum_k q_v log p_t + mean_i sum_k q_t log p_v ]

Negatives are other clusters instead of other studies, so two normal studies need not be pushed apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed import gather
from ..errors import KitError
from . import Objective, ObjectiveOutput

if TYPE_CHECKING:
    from ..model import ForwardPass


@torch.no_grad()
def sinkhorn(scores: Tensor, *, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Balanced soft assignments of B samples to K prototypes: (B, K) scores -> (B, K), no gradient.

    Starting from exp(scores / epsilon), columns are scaled to B / K and rows to 1 in turn (Sinkhorn-Knopp). Rows sum to
    one; columns come closer to B / K with every iteration. Everything happens in logarithms and at least float32: the
    published exp(x / 0.05) overflows float16 from x = 0.56 on. The type is that of the scores.
    """
    if scores.ndim != 2 or 0 in scores.shape:
        raise KitError(f"scores have shape {tuple(scores.shape)}: give (B samples, K prototypes), neither of them zero")
    if epsilon <= 0 or iterations < 1:
        raise KitError(f"epsilon={epsilon}, iterations={iterations}: choose epsilon above 0 and at least 1 iteration")
    wide = scores.double() if scores.dtype == torch.float64 else scores.float()
    logs = wide / epsilon
    for _ in range(iterations):
        logs = logs - logs.logsumexp(dim=0, keepdim=True)  # every prototype is used alike
        logs = logs - logs.logsumexp(dim=1, keepdim=True)  # every sample is assigned once
    return logs.exp().to(scores.dtype)


def prototype_loss(
    image: Tensor, text: Tensor, prototypes: Tensor, *, temperature: float = 0.2, epsilon: float = 0.05, iterations: int = 3
) -> Tensor:
    """The formula: image, text (B, D) unit vectors of the same studies, prototypes (K, D) unit vectors. A scalar."""
    if image.shape != text.shape or image.ndim != 2 or prototypes.ndim != 2 or prototypes.shape[1] != image.shape[1]:
        raise KitError(
            f"image {tuple(image.shape)}, text {tuple(text.shape)}, prototypes {tuple(prototypes.shape)}: give (B, D), "
            "(B, D) and (K, D)"
        )
    of_image, of_text = image @ prototypes.T, text @ prototypes.T  # (B, K)
    options = dict(epsilon=epsilon, iterations=iterations)
    by_text = F.cross_entropy(of_text / temperature, sinkhorn(of_image, **options))
    by_image = F.cross_entropy(of_image / temperature, sinkhorn(of_text, **options))
    return (by_text + by_image) / 2


class PrototypeAlignment(Objective):
    """`prototype_loss` of the global batch against learned prototypes.

    width: of the joint space. count: MGCA uses 500 for a batch of 144; a small batch needs fewer, for Sinkhorn spreads
    the batch over all of them. frozen_steps: at the beginning the prototypes stay as drawn, so that features settle
    first (MGCA: one epoch); the steps are counted in a buffer.
    """

    name = "prototypes"

    def __init__(
        self, width: int, *, count: int = 64, temperature: float = 0.2, epsilon: float = 0.05, iterations: int = 3,
        frozen_steps: int = 0,
    ):  # fmt: skip
        super().__init__()
        self.options = dict(temperature=temperature, epsilon=epsilon, iterations=iterations)
        self.frozen_steps = frozen_steps
        self.prototypes = nn.Parameter(F.normalize(torch.randn(count, width), dim=1))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, forward_pass: ForwardPass) -> ObjectiveOutput:
        image, text = gather(forward_pass.image_embedding), gather(forward_pass.text_embedding)  # (B, D)
        with torch.autocast(image.device.type, enabled=False):
            image, text = image.float(), text.float()
            moving = self.prototypes * (self.step >= self.frozen_steps)  # (K, D), without a question to the device
            resting = self.prototypes.detach() * (self.step < self.frozen_steps)
            prototypes = F.normalize(moving + resting, dim=1)
            loss = prototype_loss(image, text, prototypes, **self.options)
        if self.training:
            self.step += 1
        with torch.no_grad():
            chosen, said = (image @ prototypes.T).argmax(dim=1), (text @ prototypes.T).argmax(dim=1)  # (B,)
            share = torch.bincount(chosen, minlength=len(prototypes)) / len(chosen)  # (K,)
            used = torch.exp(-torch.special.xlogy(share, share).sum())  # all in one: 1; all alike: min(B, K)
            agreement = (chosen == said).float().mean()
        return ObjectiveOutput(loss, {"clusters used": used, "same cluster": agreement})
