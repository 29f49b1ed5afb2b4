"""Contrast with an answer that is not the identity: a matrix says how much each text is each image's answer.

Which matrix is a question of its own (`false_negatives`); these losses take any.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import gather
from ..errors import KitError, unknown
from . import Objective, ObjectiveOutput
from .false_negatives import (
    SIMILARITIES,
    category_targets,
    label_targets,
    of_labels,
    smoothed_targets,
    triage,
    triage_targets,
)

if TYPE_CHECKING:
    from ..model import ForwardPass


def soft_target_nce(
    logits: Tensor, targets: Tensor, *, weights: Tensor | None = None, rivals: str = "all", normalise: bool = True
) -> Tensor:
    """Soft cross-entropy, mean of both directions; for image to text

        loss = -1/B sum_i sum_j y_ij log( exp(s_ij) / (exp(s_ij) + sum_{k in R, k != j} w_ik exp(s_ik)) )

    and likewise down the columns with the transpose of y. logits s: (B, B), already divided by the temperature.
    targets y: (B, B), not negative; rows, and rows of the transpose, are divided by their sums unless normalise=False,
    IMITATE's released form; a row without any target counts nothing. weights w: (B, B), of the pairs with y_ik = 0
    (elsewhere w is 1); 0 leaves a pair out. rivals R: "all", so that several right texts share the probability, or
    "negatives", texts with y_ik = 0 alone, so that each right text is held against the wrong ones only (SAT). The
    identity as targets gives InfoNCE.
    """
    if logits.ndim != 2 or logits.shape[0] != logits.shape[1] or targets.shape != logits.shape:
        raise KitError(f"logits {tuple(logits.shape)}, targets {tuple(targets.shape)}: give (B, B) and (B, B)")
    if weights is not None and weights.shape != logits.shape:
        raise KitError(f"weights {tuple(weights.shape)}: give {tuple(logits.shape)}, one for each pair")
    if rivals not in RIVALS:
        raise unknown("kind of rivals", rivals, RIVALS)
    targets = targets.to(logits.dtype)
    factors = torch.zeros_like(logits) if weights is None else weights.to(logits.dtype).log()  # (B, B)
    one = _one_direction(logits, targets, factors, rivals, normalise)
    return (one + _one_direction(logits.T, targets.T, factors.T, rivals, normalise)) / 2


def _one_direction(logits: Tensor, targets: Tensor, factors: Tensor, rivals: str, normalise: bool) -> Tensor:
    if normalise:
        targets = targets / targets.sum(dim=1, keepdim=True).clamp(min=torch.finfo(targets.dtype).tiny)
    counted = targets > 0
    # an answer stands in the denominator once, whatever its weight; a row without any must not be empty either
    factors = factors.masked_fill(counted | ~counted.any(dim=1, keepdim=True), 0.0)
    if rivals == "all":
        scores = logits + factors
        surprise = scores.logsumexp(dim=1, keepdim=True) - logits  # (B, B)
    else:
        against = (logits + factors).masked_fill(counted, -torch.inf)
        against = torch.cat([against, torch.full_like(against[:, :1], torch.finfo(against.dtype).min)], dim=1)
        surprise = F.softplus(against.logsumexp(dim=1, keepdim=True) - logits)  # no rivals: nothing to lose
    return (targets * surprise.masked_fill(~counted, 0.0)).sum() / len(logits)


RIVALS = ("all", "negatives")


def debiased_nce(logits: Tensor, *, share: Tensor | float, temperature: Tensor | float) -> Tensor:
    """InfoNCE that subtracts what false negatives must have added (Chuang et al., "Debiased contrastive learning",
    NeurIPS 2020), mean of both directions; for image to text, with N = B - 1 negatives and s = cosine / temperature,

        g_i = max( (mean_{j != i} exp(s_ij) - share exp(s_ii)) / (1 - share),  exp(-1 / temperature) )
        loss = -mean_i log( exp(s_ii) / (exp(s_ii) + N g_i) )

    share: the chance that a random pair is a match, a number or one for each study (B,); 0 is InfoNCE. No pair needs
    to be known: the estimate is right on average, for a positive that is typical of its class. Scalar.
    """
    if logits.ndim != 2 or logits.shape[0] != logits.shape[1] or len(logits) < 2:
        raise KitError(f"logits have shape {tuple(logits.shape)}: give (B, B), B at least 2")
    if not isinstance(share, Tensor) and not 0 <= share < 1:
        raise KitError(f"share is {share}: choose at least 0 and below 1")
    temperature = torch.as_tensor(temperature, dtype=logits.dtype, device=logits.device)
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    losses = []
    for scores in (logits, logits.T):
        highest = scores.detach().amax(dim=1)  # (B,) exponentials are taken below it
        right = scores.diagonal() - highest
        wrong = (scores - highest[:, None]).exp().masked_fill(own, 0.0).sum(dim=1) / (len(scores) - 1)
        lowest = torch.exp(-1 / temperature - highest)
        negatives = torch.maximum((wrong - share * right.exp()) / (1 - share), lowest)  # (B,)
        losses.append((torch.log(right.exp() + (len(scores) - 1) * negatives) - right).mean())
    return (losses[0] + losses[1]) / 2


def _by_labels(forward_pass: ForwardPass, **options) -> tuple[Tensor, None]:
    return label_targets(of_labels(forward_pass), **options), None


def _by_category(forward_pass: ForwardPass) -> tuple[Tensor, None]:
    return category_targets(of_labels(forward_pass)), None


def _by_similarity(forward_pass: ForwardPass, *, similarity: str = "words", **options) -> tuple[Tensor, None]:
    return smoothed_targets(SIMILARITIES[similarity](forward_pass), **options), None


def _by_triage(forward_pass: ForwardPass, *, similarity: str = "words", **options) -> tuple[Tensor, Tensor]:
    return triage_targets(triage(SIMILARITIES[similarity](forward_pass), **options))


TARGETS = {"labels": _by_labels, "category": _by_category, "similarity": _by_similarity, "triage": _by_triage}


class SoftTargetContrastive(Objective):
    """`soft_target_nce` of the global batch at the model's temperature, with the answers that `targets` names:

        "labels"      MedCLIP, `label_targets`
        "category"    FLAIR and UniCL, `category_targets`
        "similarity"  IMITATE, `smoothed_targets` of a text similarity
        "triage"      SAT, `triage` of a text similarity; each match against the negatives alone

    or a function of the forward pass -> (targets (B, B), weights (B, B) or None). options go to the rule;
    similarity="words" or "embeddings" says what the last two go by. hard: this share of the answer stays with the own
    text, (1 - hard) y + hard I: labels alone cannot tell studies of one label apart.
    """

    name = "soft contrastive"

    def __init__(
        self,
        targets: str | Callable[[ForwardPass], tuple[Tensor, Tensor | None]],
        *,
        hard: float = 0.0,
        rivals: str | None = None,
        normalise: bool = True,
        **options,
    ):
        super().__init__()
        if isinstance(targets, str) and targets not in TARGETS:
            raise unknown("rule for targets", targets, TARGETS)
        if options.get("similarity", "words") not in SIMILARITIES:
            raise unknown("similarity of texts", options["similarity"], SIMILARITIES)
        if rivals is not None and rivals not in RIVALS:
            raise unknown("kind of rivals", rivals, RIVALS)
        if not 0 <= hard <= 1:
            raise KitError(f"hard is {hard}: choose it between 0 and 1")
        self.rivals = rivals or ("negatives" if targets == "triage" else "all")
        self.rule = partial(TARGETS.get(targets, targets), **options)
        self.hard, self.normalise = hard, normalise

    def forward(self, forward_pass: ForwardPass) -> ObjectiveOutput:
        image, text = gather(forward_pass.image_embedding), gather(forward_pass.text_embedding)  # (B, D)
        temperature = forward_pass.model.temperature()
        with torch.autocast(image.device.type, enabled=False):
            with torch.no_grad():
                targets, weights = self.rule(forward_pass)  # (B, B)
                own = torch.eye(len(image), dtype=targets.dtype, device=targets.device)
                targets = targets.lerp(own, self.hard)
            logits = image.float() @ text.float().T / temperature
            loss = soft_target_nce(logits, targets, weights=weights, rivals=self.rivals, normalise=self.normalise)
        with torch.no_grad():
            elsewhere = 1 - (targets.diagonal() / targets.sum(dim=1)).mean()
            hits = logits.argmax(dim=1) == torch.arange(len(logits), device=logits.device)  # (B,)
        logs = {"answer elsewhere": elsewhere, "batch accuracy": hits.float().mean(), "temperature": temperature.detach()}
        return ObjectiveOutput(loss, logs)


class DebiasedContrastive(Objective):
    """`debiased_nce` of the global batch at the model's temperature. share: as there."""

    name = "debiased contrastive"

    def __init__(self, *, share: float):
        super().__init__()
        if not 0 <= share < 1:
            raise KitError(f"share is {share}: choose at least 0 and below 1")
        self.share = share

    def forward(self, forward_pass: ForwardPass) -> ObjectiveOutput:
        image, text = gather(forward_pass.image_embedding), gather(forward_pass.text_embedding)  # (B, D)
        temperature = forward_pass.model.temperature()
        with torch.autocast(image.device.type, enabled=False):
            logits = image.float() @ text.float().T / temperature
            loss = debiased_nce(logits, share=self.share, temperature=temperature)
        with torch.no_grad():
            hits = logits.argmax(dim=1) == torch.arange(len(logits), device=logits.device)  # (B,)
        return ObjectiveOutput(loss, {"batch accuracy": hits.float().mean(), "temperature": temperature.detach()})
