"""What to measure beside the loss: false negatives and their pull, and the shape of the embedding space.

Pure functions without gradient, for training logs, tests and lessons alike.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import KitError
from .false_negatives import same_category


@torch.no_grad()
def expected_false_negatives(labels: Tensor, *, batch_size: int) -> float:
    """How many of the B - 1 negatives of a study say the same as it, on average over batches drawn without replacement:

        (B - 1) sum_c n_c (n_c - 1) / (N (N - 1))           near (B - 1) sum_c pi_c^2 for large N, with pi_c = n_c / N

    labels: of the N studies of the collection, (N,) categories or (N, F) findings, NaN being a value of its own.
    """
    count = len(labels)
    if not 1 <= batch_size <= count:
        raise KitError(f"a batch of {batch_size} cannot be drawn from {count} studies: choose 1 to {count}")
    rows = labels if labels.ndim == 2 else labels[:, None]
    sizes = rows.nan_to_num(nan=-1.0).unique(dim=0, return_counts=True)[1].double()  # (C,)
    return (batch_size - 1) * (sizes * (sizes - 1)).sum().item() / max(1, count * (count - 1))


@torch.no_grad()
def false_negative_rate(labels: Tensor) -> Tensor:
    """Share of the B (B - 1) negatives of this batch that say the same. labels as above; a scalar, 0 for one study."""
    same = same_category(labels)
    return (same.sum() - len(same)) / max(1, len(same) * (len(same) - 1))


@torch.no_grad()
def false_negative_gradient_share(logits: Tensor, same: Tensor) -> Tensor:
    """How much of InfoNCE's push falls on pairs that should not be pushed, mean of both directions:

        sum_{(i, j) false negative} softmax_ij / sum_{i != j} softmax_ij

    for d loss / d s_ij is softmax_ij / B off the diagonal. logits: (B, B), divided by the temperature; same: (B, B)
    bool, its diagonal is not read. It passes the mere share of such pairs as soon as the model sees that they are
    alike. Scalar.
    """
    if logits.ndim != 2 or logits.shape != same.shape or same.dtype != torch.bool:
        raise KitError(f"logits {tuple(logits.shape)}, same {same.dtype} {tuple(same.shape)}: give (B, B) and bool (B, B)")
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    shares = []
    for dim in (1, 0):
        push = logits.softmax(dim=dim).masked_fill(own, 0.0)
        shares.append(push[same].sum() / push.sum().clamp(min=torch.finfo(push.dtype).tiny))
    return (shares[0] + shares[1]) / 2


@torch.no_grad()
def alignment(image: Tensor, text: Tensor, *, power: float = 2.0) -> Tensor:
    """mean_i |image_i - text_i|^power of unit vectors (B, D); 0 is perfect (Wang and Isola, ICML 2020)."""
    return (image - text).norm(dim=1).pow(power).mean()


@torch.no_grad()
def uniformity(embeddings: Tensor, *, scale: float = 2.0) -> Tensor:
    """log mean_{i != j} exp(-scale |x_i - x_j|^2) of unit vectors (B, D) (Wang and Isola, ICML 2020).

    0 when all are one; spread evenly over a sphere of many dimensions it comes near -2 * scale.
    """
    if len(embeddings) < 2:
        raise KitError("uniformity needs at least two embeddings")
    return torch.pdist(embeddings).square().mul(-scale).logsumexp(dim=0) - torch.log(
        torch.tensor(len(embeddings) * (len(embeddings) - 1) / 2, dtype=embeddings.dtype, device=embeddings.device)
    )


@torch.no_grad()
def effective_rank(embeddings: Tensor, *, centre: bool = True) -> Tensor:
    """How many dimensions are in use: exp of the entropy of the singular values' shares (Roy and Vetterli, EUSIPCO 2007).

    embeddings (B, D). centre: take their mean away first, lest a common offset count as a dimension. Between 1 and
    min(B, D); at most B - 1 once centred; 0 when all embeddings are the same.
    """
    if embeddings.ndim != 2:
        raise KitError(f"embeddings have shape {tuple(embeddings.shape)}: give (B, D)")
    rows = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    noise = torch.finfo(rows.dtype).eps * rows.norm() * max(rows.shape) ** 0.5
    rows = rows - rows.mean(dim=0) if centre else rows
    values = torch.linalg.svdvals(rows)
    values = values * (values > noise)
    shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return torch.exp(-torch.special.xlogy(shares, shares).sum()) * (values.sum() > 0)


@torch.no_grad()
def participation_ratio(embeddings: Tensor) -> Tensor:
    """How many dimensions are in use, without singular values and so cheap enough for every step:

        (sum_k l_k)^2 / sum_k l_k^2 = trace(C)^2 / |C|^2,        l_k the eigenvalues of the covariance C

    embeddings (B, D) -> scalar between 1 and min(B - 1, D); 0 when all are the same.
    """
    if embeddings.ndim != 2:
        raise KitError(f"embeddings have shape {tuple(embeddings.shape)}: give (B, D)")
    rows = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    rows = rows - rows.mean(dim=0)
    covariance = rows.T @ rows  # (D, D)
    tiny = torch.finfo(rows.dtype).tiny
    return covariance.diagonal().sum().square() / covariance.square().sum().clamp(min=tiny)


@torch.no_grad()
def modality_gap(image: Tensor, text: Tensor) -> Tensor:
    """|mean image - mean text|, unit vectors (B, D): how far apart the two clouds lie (Liang et al., NeurIPS 2022)."""
    return (F.normalize(image, dim=1).mean(dim=0) - F.normalize(text, dim=1).mean(dim=0)).norm()
