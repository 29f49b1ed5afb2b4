"""The report's own hierarchy (IMITATE; Liu et al., "Clinical Prior Guided Hierarchical Vision-Language Pre-training",
IEEE TMI 2024): Findings describe what is seen, the Impression concludes.

So features of several levels of the image encoder, edges to shapes, are aligned with the Findings, and the last level
alone with the Impression:

    loss = findings_weight * contrast(levels, findings) + contrast(last, impression)

where contrast is InfoNCE, or its soft form when `targets` says how much two texts have in common. The collation gives
the whole report for a section that is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed import gather
from ..encoders.features import ImageFeatures
from ..errors import KitError
from . import Objective, ObjectiveOutput

if TYPE_CHECKING:
    from ..encoders.image import ImageEncoder
    from ..model import ForwardPass, VisionLanguageModel


def contrast(image: Tensor, text: Tensor, *, temperature: Tensor | float, targets: Tensor | None = None) -> Tensor:
    """Mean of both directions of -sum_j y_ij log softmax_j(<image_i, text_j> / temperature), mean over i. A scalar.

    image, text (B, D) unit vectors. targets y (B, B), not negative; None is the identity, and this InfoNCE. Rows of y
    are used as they come: IMITATE's I + smoothing do not sum to one, which weighs studies with many relatives more.
    """
    if image.shape != text.shape or image.ndim != 2:
        raise KitError(f"image {tuple(image.shape)} and text {tuple(text.shape)}: both must be (B, D), of one shape")
    logits = image @ text.T / temperature  # (B, B)
    if targets is None:
        targets = torch.eye(len(logits), dtype=logits.dtype, device=logits.device)
    elif targets.shape != logits.shape:
        raise KitError(f"targets {tuple(targets.shape)}: give {tuple(logits.shape)}, one number for each pair")
    one, two = logits.log_softmax(dim=1), logits.log_softmax(dim=0)
    return -((targets * one).sum() + (targets * two).sum()) / (2 * len(logits))


def hierarchical_loss(
    levels: Tensor,
    last: Tensor,
    findings: Tensor,
    impression: Tensor,
    *,
    temperature: Tensor | float,
    findings_weight: float = 1.0,
    targets: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, Findings' part, Impression's part) of the formula; everything (B, D) unit vectors.

    targets: text embeddings (B, D), without gradient -> (B, B), for instance the correlations that IMITATE smooths by.
    """
    wanted = [None if targets is None else targets(text.detach()) for text in (findings, impression)]
    described = contrast(levels, findings, temperature=temperature, targets=wanted[0])
    concluded = contrast(last, impression, temperature=temperature, targets=wanted[1])
    return findings_weight * described + concluded, described, concluded


class HierarchicalAlignment(Objective):
    """`hierarchical_loss` of the global batch; the batch must bring the texts "findings" and "impression".

    levels: how many of the encoder's last levels describe; each is averaged over the image, and all are projected
    together by a head of this objective. The Impression uses the model's own heads, the ones zero-shot uses.
    findings_weight: the released code has 1 at first and 0.3 later.
    """

    name = "hierarchy"

    def __init__(
        self, model: VisionLanguageModel, *, levels: int = 3, findings_weight: float = 1.0,
        targets: Callable[[Tensor], Tensor] | None = None,
    ):  # fmt: skip
        super().__init__()
        widths = level_widths(model.image_encoder)
        if not 1 <= levels <= len(widths):
            raise KitError(f"levels={levels}: this image encoder has {len(widths)}; choose 1 to {len(widths)}")
        self.levels, self.findings_weight, self.targets = levels, findings_weight, targets
        self.image_head = nn.Linear(sum(widths[-levels:]), model.embedding_width)
        self.findings_head = nn.Linear(model.text_encoder.width, model.embedding_width)

    def forward(self, forward_pass: ForwardPass) -> ObjectiveOutput:
        maps = image_levels(forward_pass)[-self.levels :]
        seen = self.image_head(torch.cat([level.mean(dim=(2, 3)) for level in maps], dim=1))  # (B, D)
        said = self.findings_head(forward_pass.reading("findings").pooled)  # (B, D)
        last = forward_pass.image_embedding
        concluded = forward_pass.model.embed_text(forward_pass.reading("impression"))  # (B, D)
        temperature = forward_pass.model.temperature()
        with torch.autocast(seen.device.type, enabled=False):
            pairs = [gather(x.float()) for x in (F.normalize(seen, dim=1), last, F.normalize(said, dim=1), concluded)]
            loss, described, closed = hierarchical_loss(
                *pairs, temperature=temperature, findings_weight=self.findings_weight, targets=self.targets
            )
        logs = {"findings": described.detach(), "impression": closed.detach(), "temperature": temperature.detach()}
        return ObjectiveOutput(loss, logs)


def image_levels(forward_pass: ForwardPass) -> list[Tensor]:
    """Feature maps (B, D_l, h_l, w_l) of the principal view, finest first, computed once.

    Where the encoder pools its last level, `forward_pass.image` is taken from them too: the image is encoded once.
    """

    def compute() -> list[Tensor]:
        encoder, batch = forward_pass.model.image_encoder, forward_pass.batch
        levels = encoder.forward_levels(batch.images)
        if encoder.pooling != "cls":  # a class token is not among the levels
            last = levels[-1]
            patches = last.flatten(2).transpose(1, 2)  # (B, N, D)
            pooled = patches.mean(dim=1) if encoder.pool is None else encoder.pool(patches)
            features = ImageFeatures(pooled, patches, tuple(last.shape[-2:]))
            forward_pass.cached(("view", next(iter(batch.views))), lambda: features)
        return levels

    return forward_pass.cached("image levels", compute)


def level_widths(encoder: ImageEncoder) -> list[int]:
    """Channels of each level of an image encoder, finest first, read off a blank image."""
    training = encoder.training
    blank = torch.zeros(1, encoder.channels, encoder.image_size, encoder.image_size, device=encoder.mean.device)
    with torch.no_grad():
        widths = [level.shape[1] for level in encoder.eval().forward_levels(blank)]
    encoder.train(training)
    return widths
