"""Zero-shot classification by prompt pairs, and AUROC with bootstrap intervals that need no loop over resamples."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..budget import Budget
from ..encoders.features import ImageFeatures
from ..errors import KitError, unknown
from ..study import Collection, Tokenizer
from .encode import Examination, encode_texts, evaluating, images_at, similarity, text_to
from .intervals import Intervals, bootstrap
from .prompts import PromptSet, as_prompt_set
from .result import Estimate, Result

ENSEMBLES = ("embedding", "score")


def _checked(scores, labels) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels as float64 of one shape, (N,) or (N, C); labels are 0, 1 or NaN."""
    scores = np.asarray(scores, dtype=np.float64)
    labels = np.asarray(labels, dtype=np.float64)
    if scores.shape != labels.shape or scores.ndim not in (1, 2):
        raise KitError(f"scores {scores.shape} and labels {labels.shape}: give both as (N,) or both as (N, C)")
    if not np.isin(labels[~np.isnan(labels)], (0.0, 1.0)).all():
        raise KitError("labels must be 1 (present), 0 (absent) or NaN (uncertain or unknown)")
    if np.isnan(scores[~np.isnan(labels)]).any():
        raise KitError("scores hold NaN where the label is known: a model that gives NaN cannot be ranked")
    return scores, labels


def weighted_auroc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC of one score (N,) under R weightings of the cases (N, R): (R,), NaN where a class has no weight.

    AUROC = sum_p w_p (W(s < s_p) + W(s = s_p) / 2) / (W_positive W_negative), with W the weight of the negatives that
    satisfy the condition: the Mann-Whitney statistic, ties counting half (Hanley and McNeil 1982). The negatives are
    sorted once; each weighting costs a cumulative sum and a lookup.
    """
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    negative = negative[np.argsort(scores[negative], kind="stable")]
    below = np.zeros((len(negative) + 1, weights.shape[1]))
    np.cumsum(weights[negative], axis=0, out=below[1:])  # weight of the k lowest negatives
    first = np.searchsorted(scores[negative], scores[positive], side="left")
    last = np.searchsorted(scores[negative], scores[positive], side="right")
    gained = weights[positive]  # (P, R)
    won = np.einsum("pr,pr->r", gained, below[first])
    tied = first != last
    if tied.any():
        won += 0.5 * np.einsum("pr,pr->r", gained[tied], below[last[tied]] - below[first[tied]])
    pairs = gained.sum(0) * below[-1]
    return np.where(pairs > 0, won / np.maximum(pairs, 1e-300), np.nan)


def auroc(scores, labels):
    """Area under the ROC curve: a float for (N,), an array (C,) for (N, C). NaN labels are left out, column by column;
    a column with one class only is NaN."""
    scores, labels = _checked(scores, labels)
    ones = np.ones((len(scores), 1))
    if scores.ndim == 1:
        return float(weighted_auroc(scores, labels, ones)[0])
    return np.array([weighted_auroc(s, y, ones)[0] for s, y in zip(scores.T, labels.T)])


def bootstrap_auroc(scores, labels, *, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> Intervals:
    """AUROC with percentile bootstrap intervals over cases; `.macro` averages the columns resample by resample.

    scores, labels: (N,) or (N, C); NaN labels are left out, column by column. All columns share the resamples, so the
    macro average keeps the dependence between findings. Resamples with one class are NaN and counted in `.undefined`.
    Every other one equals scikit-learn's `roc_auc_score` on that resample.
    """
    scores, labels = _checked(scores, labels)

    def statistic(weights: np.ndarray) -> np.ndarray:
        if scores.ndim == 1:
            return weighted_auroc(scores, labels, weights)
        return np.stack([weighted_auroc(s, y, weights) for s, y in zip(scores.T, labels.T)], axis=1)

    return bootstrap(statistic, len(scores), resamples=resamples, seed=seed, level=level)


def pair_means(values: Tensor, prompts: PromptSet) -> Tensor:
    """(N, P) numbers, a column for each of `prompts.sentences`, to means over the sentences of each half: (N, C, 2).

    [..., 0] is the half that affirms a finding, [..., 1] the half that denies it.
    """
    place = {sentence: i for i, sentence in enumerate(prompts.sentences)}
    halves = [half for pair in prompts.pairs.values() for half in pair]
    means = torch.stack([values[:, [place[s] for s in half]].mean(1) for half in halves], dim=1)  # (N, 2C)
    return means.reshape(len(values), -1, 2)


def zero_shot_scores(
    model, image: ImageFeatures, prompts: PromptSet, tokenizer: Tokenizer | None = None, *, text=None,
    length: int = 64, ensemble: str | None = None, temperature: float | None = None, probabilities: bool = False,
) -> Tensor:  # fmt: skip
    """Zero-shot scores (N, C) of already encoded images, one column a finding of `prompts`.

    score = s(image, affirmed) - s(image, denied), with s = `model.similarity`, the scorer that training used.
    ensemble "embedding": s of the renormalised mean of a half's unit embeddings (CLIP, Radford et al. 2021). For a
    cosine this is the mean of the single scores over the length of the mean embedding, which is how it is computed:
    the scorer itself is asked, never rebuilt. "score": the plain mean of the single scores, right for any scorer. None
    chooses "embedding" where the scorer is the cosine of the embeddings, and "score" elsewhere.
    probabilities: softmax over the pair at `temperature` (the model's own when None): the probability of "affirmed".
    text: features of `prompts.sentences`, if already encoded; else `tokenizer` encodes them at `length`.
    """
    if text is None:
        text = encode_texts(model, tokenizer, prompts.sentences, length=length)
    values = similarity(model, image, text)  # (N, P)
    device = next(model.parameters()).device
    with evaluating(model):
        unit = model.embed_text(text_to(text, device)).float().cpu()  # (P, D)
        if ensemble is None:
            few = images_at(image, slice(0, 4))
            pooled = model.embed_image(type(image)(few.pooled.to(device), few.patches.to(device), few.grid))
            ensemble = "embedding" if torch.allclose(pooled.float().cpu() @ unit.T, values[:4], atol=1e-4) else "score"
        if temperature is None and probabilities:
            temperature = float(model.temperature())
    if ensemble not in ENSEMBLES:
        raise unknown("ensemble", ensemble, ENSEMBLES)
    pairs = pair_means(values, prompts)  # (N, C, 2)
    if ensemble == "embedding":
        pairs = pairs / pair_means(unit.T, prompts).norm(dim=0).clamp_min(1e-6)  # lengths of the mean embeddings (C, 2)
    difference = pairs[..., 0] - pairs[..., 1]
    return torch.sigmoid(difference / temperature) if probabilities else difference


def zero_shot(
    model, tokenizer: Tokenizer, collection: Collection, *, budget: str | Budget | None = None,
    split: str | None = "test", prompts=None, seed: int = 0, ensemble: str | None = None,
    examination: Examination | None = None,
) -> Result:  # fmt: skip
    """Zero-shot macro-AUROC over the findings of `collection`, beside shuffled images and random weights.

    Findings whose known labels are all of one class are listed in the table but cannot enter the mean.
    """
    exam = examination or Examination(model, tokenizer, collection, budget=budget, split=split, seed=seed)
    names = list(exam.collection.label_names)
    if not names:
        raise KitError(f"{exam.collection.name} has no labels, so zero-shot classification has nothing to be scored on")
    prompts = as_prompt_set(prompts, names).only(names)
    labels = exam.encoded.labels.numpy().astype(float)
    resamples = exam.budget.resamples

    def scores(of: Examination) -> np.ndarray:
        text = of.prompts(prompts.sentences)
        return zero_shot_scores(of.model, of.encoded.image, prompts, text=text, ensemble=ensemble).numpy()

    own = scores(exam)
    intervals = bootstrap_auroc(own, labels, resamples=resamples, seed=seed)
    shuffled = own[np.random.default_rng(seed).permutation(len(own))]
    controls = {
        "shuffled images": bootstrap_auroc(shuffled, labels, resamples=resamples, seed=seed).macro,
        "random weights": bootstrap_auroc(scores(exam.control), labels, resamples=resamples, seed=seed).macro,
    }
    table = pd.DataFrame(
        {
            "AUROC": intervals.value, "low": intervals.low, "high": intervals.high,
            "present": (labels == 1).sum(0), "absent": (labels == 0).sum(0), "unknown": np.isnan(labels).sum(0),
            "one-class resamples": intervals.undefined,
        },
        index=pd.Index(names, name="finding"),
    )  # fmt: skip
    defined = int((~np.isnan(intervals.value)).sum())
    return Result(
        task="zero-shot classification", name="macro-AUROC",
        value=float(intervals.macro.value), low=float(intervals.macro.low), high=float(intervals.macro.high),
        controls=tuple(Estimate.of(name, interval) for name, interval in controls.items()),
        n=len(exam), unit="studies", resamples=resamples, split=exam.where, prompts=str(prompts), seed=seed,
        table=table,
        rule=(
            f"unweighted mean of the AUROC of {defined} of {len(names)} findings (those with both classes); score = "
            "similarity with the affirming minus similarity with the denying sentences, the scorer of training; ties "
            "count half; unknown labels left out; studies resampled, a finding with one class in a resample is left "
            "out of that resample"
        ),
    )  # fmt: skip
