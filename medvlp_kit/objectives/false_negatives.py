"""False negatives: pairs of different studies that say the same. What is known of them becomes one (B, B) matrix.

The identity matrix claims that image i fits text i and no other. Where most studies are normal that is wrong for most
pairs. Each rule below replaces it, from labels or from how alike the texts are, by one of

    same       bool, the two studies say the same
    targets    not negative; how much text j should be image i's answer (`soft_targets.soft_target_nce`)
    labels     -1 negative, 0 left out, +1 positive (`sigmoid.sigmoid_loss`, and `triage_targets` for the softmax)

Rules that act elsewhere: clusters instead of studies as negatives (`prototypes`), a momentum teacher's opinion
(`momentum`), no negatives at all (`negative_free`), an estimate instead of knowledge (`soft_targets.debiased_nce`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import gather
from ..errors import KitError, unknown

if TYPE_CHECKING:
    from ..model import ForwardPass

TREATMENTS = {"ignored": 0, "positive": 1}
BUCKETS = 4096  # columns of a bag of words: larger vocabularies share some
BASE = 6364136223846793005  # odd, so that no power of it vanishes modulo 2^64


def same_category(labels: Tensor) -> Tensor:
    """(B, B) bool: equal labels. labels (B,) categories, or (B, F) findings of which NaN is a value of its own."""
    if labels.ndim not in (1, 2):
        raise KitError(f"labels have shape {tuple(labels.shape)}: give (B,) categories or (B, F) findings")
    rows = (labels if labels.ndim == 2 else labels[:, None]).nan_to_num(nan=-1.0)  # (B, F)
    return (rows[:, None] == rows[None]).all(dim=2)


def pair_labels(same: Tensor, *, treat: str = "ignored") -> Tensor:
    """(B, B) in {-1, 0, +1}, int8: the diagonal +1, other pairs that are `same` 0 or +1 as `treat` says, the rest -1."""
    if treat not in TREATMENTS:
        raise unknown("treatment of pairs that belong together", treat, TREATMENTS)
    own = _diagonal(same)
    return torch.where(same, TREATMENTS[treat], -1).masked_fill(own, 1).to(torch.int8)


def category_targets(labels: Tensor) -> Tensor:
    """Equal shares for all texts of one's own category (UniCL, Yang et al. CVPR 2022; FLAIR, Silva-Rodriguez et al. 2023):

        y_ij = 1[c_i = c_j] / sum_k 1[c_i = c_k]

    labels as in `same_category`. Float32 (B, B), rows sum to one.
    """
    same = (same_category(labels) | _diagonal(labels)).float()
    return same / same.sum(dim=1, keepdim=True)


def label_targets(labels: Tensor, *, temperature: float = 1.0, cosine: bool = False, absent: float = 0.0) -> Tensor:
    """Texts by how many findings they share with the image (MedCLIP; Wang et al., EMNLP 2022):

        y_ij = softmax_j( <l_i, l_j> / temperature )

    labels (B, F): 1 present, 0 absent, NaN unknown; a column "no finding" is added, 1 where nothing is present and
    nothing unknown, lest normal studies resemble none. cosine: of l_i and l_j as in the paper, instead of the released
    code's inner product. absent: what an absent finding counts; -1 lets shared absences count as much as presences.
    At temperature 1 a single shared finding weighs only e times as much as none: for large B lower it. Float32 (B, B).
    """
    if labels.ndim != 2 or temperature <= 0:
        raise KitError(f"labels {tuple(labels.shape)}, temperature {temperature}: give (B, F) and a temperature above 0")
    normal = (labels == 0).all(dim=1, keepdim=True)  # (B, 1)
    columns = torch.cat([labels, normal.to(labels.dtype)], dim=1).float()  # (B, F + 1)
    columns = torch.where(columns == 0, absent, columns).nan_to_num(nan=0.0)
    columns = F.normalize(columns, dim=1) if cosine else columns
    return (columns @ columns.T / temperature).softmax(dim=1)


def smoothed_targets(correlation: Tensor, *, strength: float = 0.07, rate: float = 0.2, normalise: bool = False) -> Tensor:
    """The own text, and a little of every text that resembles it (IMITATE; Liu et al., IEEE TMI 2024):

        y = I + strength (1 - exp(-rate max(c, 0))) off the diagonal

    correlation c: (B, B) between texts. The released code takes the temperature of the loss as strength and leaves rows
    summing to more than one, which weighs studies with many relatives more; normalise: divide rows by their sum.
    """
    own = _diagonal(correlation)
    targets = strength * (1 - torch.exp(-rate * correlation.clamp(min=0)))
    targets = targets.masked_fill(own, 1.0)
    return targets / targets.sum(dim=1, keepdim=True) if normalise else targets


def triage(similarity: Tensor, *, low: float = 0.90, high: float = 0.98, percentile: bool = True) -> Tensor:
    """Pairs in three piles by how alike their texts are (SAT; Liu et al., "Improving medical vision-language contrastive
    pretraining with semantics-aware triage", IEEE TMI 2023): (B, B) in {-1, 0, +1}, int8, the diagonal +1.

        +1 where s_ij >= high,     0 where low < s_ij < high,     -1 where s_ij <= low

    percentile: low and high are shares of the pairs off the diagonal, 0.98 for the highest fiftieth, not values of s.
    SAT's own thresholds are the values 0.97 and 0.98, which fit one text encoder and no other. Pairs that tie are never
    told apart: copies of one report are all matches, however many; where all pairs tie, nothing is known, and all are
    negatives.
    """
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
        raise KitError(f"similarity has shape {tuple(similarity.shape)}: give (B, B)")
    if not low <= high or (percentile and not 0 <= low <= high <= 1):
        raise KitError(f"low={low}, high={high}: low must not be above high, and percentiles lie between 0 and 1")
    own, similarity = _diagonal(similarity), (similarity.detach().double() * 1e6).round()  # ties are ties
    limits, lowest = (1e6 * low, 1e6 * high), -torch.inf
    if percentile and len(own) > 1:
        others = similarity[~own].sort().values  # (B * (B - 1),)
        below, above = (int(share * len(others)) for share in (low, high))
        lowest, ends = others[0], F.pad(others, (1, 1), value=torch.inf)
        limits = (ends[below] if below else -torch.inf, ends[above + 1])
    positive = ((similarity >= limits[1]) & (similarity > lowest)) | own
    return torch.where(positive, 1, torch.where(similarity <= limits[0], -1, 0)).to(torch.int8)


def triage_targets(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Labels in {-1, 0, +1} -> (targets, weights) for `soft_target_nce`: 1 for the positives, and weight 0 for what is
    left out. Float32, both (B, B). The loss divides rows and columns by their own sums: shares are equal in both
    directions, which rows divided here would not give, for alike is not transitive."""
    return (labels > 0).float(), (labels != 0).float()


def word_similarity(ids: Tensor, mask: Tensor) -> Tensor:
    """Cosine (B, B) of the texts' bags of words, rare words counting more (TF-IDF over this batch; no model needed).

    ids, mask: (B, T). A word in all texts counts nothing, and padding is no word. It takes "no effusion" for a near
    relative of "effusion": a rule for false negatives that trusts word overlap makes false positives.
    """
    return _cosine_of_bags(_bags(ids, mask))


def text_numbers(ids: Tensor, mask: Tensor) -> Tensor:
    """(B,) int64: one number for each text, equal for equal texts, padding left out; sum_t (id_t + 1) base^t modulo 2^64."""
    powers = torch.full((ids.shape[1],), BASE, dtype=torch.int64, device=ids.device).cumprod(dim=0)  # wraps around
    return ((ids + 1) * mask * powers).sum(dim=1)


def _bags(ids: Tensor, mask: Tensor) -> Tensor:
    counts = torch.zeros(len(ids), BUCKETS, device=ids.device)  # (B, V)
    return counts.scatter_add_(1, ids % BUCKETS, mask.float())


def _cosine_of_bags(counts: Tensor) -> Tensor:
    common = (counts > 0).sum(dim=0)  # (V,) texts that hold the word
    rarity = torch.log(len(counts) / common.clamp(min=1))
    bags = F.normalize(counts * rarity, dim=1)
    return (bags @ bags.T).masked_fill(_diagonal(counts), 1.0)


def _diagonal(rows: Tensor) -> Tensor:
    return torch.eye(len(rows), dtype=torch.bool, device=rows.device)


# Relations and similarities of the global batch, by name. All are without gradient.


def of_labels(forward_pass: ForwardPass) -> Tensor:
    """The labels (B, F) of all processes."""
    labels = forward_pass.batch.labels
    if labels.shape[1] == 0:
        raise KitError("this rule reads labels and the studies have none: choose a rule that reads texts, such as 'words'")
    return forward_pass.cached("all labels", lambda: gather(labels))


def of_texts(forward_pass: ForwardPass) -> Tensor:
    """`text_numbers` of the principal texts of all processes."""
    tokens = forward_pass.batch.tokens
    return forward_pass.cached("text numbers", lambda: gather(text_numbers(tokens.ids, tokens.mask)))


@torch.no_grad()
def of_words(forward_pass: ForwardPass) -> Tensor:
    """`word_similarity` of the principal texts of all processes."""
    tokens = forward_pass.batch.tokens
    return forward_pass.cached("word similarity", lambda: _cosine_of_bags(gather(_bags(tokens.ids, tokens.mask))))


@torch.no_grad()
def of_embeddings(forward_pass: ForwardPass) -> Tensor:
    """Correlation of the texts' embeddings as they are now; a text encoder that knows nothing yet says nothing."""
    text = gather(forward_pass.text_embedding.detach()).float()  # (B, D)
    return torch.corrcoef(text)


SIMILARITIES = {"words": of_words, "embeddings": of_embeddings}
RELATIONS = {
    "category": lambda forward_pass: same_category(of_labels(forward_pass)),
    "text": lambda forward_pass: same_category(of_texts(forward_pass)),
}
