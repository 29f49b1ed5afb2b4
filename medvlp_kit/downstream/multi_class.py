"""Zero-shot among several classes: which one of these is it? Every class is a handful of sentences, no denial needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..budget import Budget
from ..encoders.features import ImageFeatures
from ..errors import KitError, unknown
from ..study import Collection, Tokenizer
from .classification import auroc
from .encode import Examination, encode_texts, evaluating, similarity, text_to
from .intervals import Intervals, bootstrap
from .prompts import phrases, wording
from .result import Estimate, Result

ENSEMBLES = ("embedding", "score", "max")


def class_scores(
    model, image: ImageFeatures, classes: Mapping[str, Sequence[str]], tokenizer: Tokenizer | None = None, *, text=None,
    length: int = 64, ensemble: str = "embedding",
) -> Tensor:  # fmt: skip
    """Similarity of already encoded images with every class, (N, C). The classes may have any number of sentences.

    ensemble: "embedding", the cosine with the renormalised mean of a class's unit embeddings; "score", the mean of the
    single similarities; "max", the greatest, which favours classes with many sentences. text: features of all sentences
    in order, if already encoded. A score depends on its own image only: nothing is standardised over the images.
    """
    if ensemble not in ENSEMBLES:
        raise unknown("ensemble", ensemble, ENSEMBLES)
    for name, sentences in classes.items():
        if isinstance(sentences, str) or not sentences:
            raise KitError(f"class {name!r}: give a list of at least one sentence")
    sentences = [sentence for part in classes.values() for sentence in part]
    if text is None:
        text = encode_texts(model, tokenizer, sentences, length=length)
    values = similarity(model, image, text)  # (N, P)
    parts = torch.split(values, [len(part) for part in classes.values()], dim=1)
    if ensemble == "max":
        return torch.stack([part.amax(1) for part in parts], dim=1)
    means = torch.stack([part.mean(1) for part in parts], dim=1)  # (N, C)
    if ensemble == "score":
        return means
    with evaluating(model):
        unit = model.embed_text(text_to(text, next(model.parameters()).device)).float().cpu()  # (P, D)
    lengths = [part.mean(0).norm() for part in torch.split(unit, [len(part) for part in classes.values()])]
    return means / torch.stack(lengths).clamp_min(1e-6)  # a mean of cosines over the length of the mean embedding


def weighted_balanced_accuracy(chosen: np.ndarray, truth: np.ndarray, classes: int, weights: np.ndarray) -> np.ndarray:
    """Mean over classes of the share of its cases that were chosen rightly: (R,) under weightings (N, R).

    A class that a resample lacks is left out of it, as scikit-learn does.
    """
    own = truth[:, None] == np.arange(classes)  # (N, C)
    total = weights.T @ own.astype(float)
    right = weights.T @ (own & (chosen == truth)[:, None]).astype(float)  # (R, C)
    recall = np.where(total > 0, right / np.maximum(total, 1e-300), np.nan)
    present = total > 0
    return np.where(present, recall, 0).sum(1) / np.maximum(present.sum(1), 1)


def bootstrap_balanced_accuracy(
    chosen, truth, *, classes: int, resamples: int = 1000, seed: int = 0
) -> Intervals:
    """Balanced accuracy of chosen classes (N,) with its bootstrap interval."""
    chosen, truth = np.asarray(chosen), np.asarray(truth)
    if chosen.shape != truth.shape or chosen.ndim != 1:
        raise KitError(f"chosen {chosen.shape} and true {truth.shape} classes: give one whole number a study")
    return bootstrap(
        lambda weights: weighted_balanced_accuracy(chosen, truth, classes, weights), len(truth), resamples=resamples,
        seed=seed,
    )  # fmt: skip


def single_finding(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows, class) of the studies with exactly one finding and no unknown label: the cases that have one right answer."""
    labels = np.asarray(labels, dtype=float)
    rows = np.flatnonzero(~np.isnan(labels).any(1) & ((labels == 1).sum(1) == 1))
    return rows, labels[rows].argmax(1)


def multi_class(
    model, tokenizer: Tokenizer, collection: Collection, *, budget: str | Budget | None = None,
    split: str | None = "test", classes: Mapping[str, Sequence[str]] | None = None, kind: str = "lexicon",
    ensemble: str = "embedding", seed: int = 0, examination: Examination | None = None,
) -> Result:  # fmt: skip
    """Balanced accuracy among all findings, on studies that have exactly one; chance is one over their number."""
    exam = examination or Examination(model, tokenizer, collection, budget=budget, split=split, seed=seed)
    names = list(exam.collection.label_names)
    rows, truth = single_finding(exam.encoded.labels.numpy())
    if len(rows) == 0:
        raise KitError(f"{exam.collection.name} has no study with exactly one finding, so there is no right class")
    classes = {name: phrases(name, kind=kind) for name in names} if classes is None else dict(classes)
    if list(classes) != names:
        raise KitError(f"classes {list(classes)} are not the labels of the data: give sentences for {names}, in that order")
    sentences = [sentence for part in classes.values() for sentence in part]
    resamples = exam.budget.resamples

    def scores(of: Examination) -> np.ndarray:
        text = of.prompts(sentences)
        return class_scores(of.model, of.encoded.image, classes, text=text, ensemble=ensemble).numpy()[rows]

    def accuracy(chosen: np.ndarray) -> Intervals:
        return bootstrap_balanced_accuracy(chosen, truth, classes=len(names), resamples=resamples, seed=seed)

    own = scores(exam)  # (n, C)
    chosen = own.argmax(1)
    found = accuracy(chosen)
    shuffled = chosen[np.random.default_rng(seed).permutation(len(chosen))]
    present = np.bincount(truth, minlength=len(names))
    controls = (
        Estimate.of("shuffled images", accuracy(shuffled)),
        Estimate.of("random weights", accuracy(scores(exam.control).argmax(1))),
        Estimate("majority answer", 1 / int((present > 0).sum())),
    )
    one_hot = (truth[:, None] == np.arange(len(names))).astype(float)
    confused = np.array([
        np.bincount(chosen[(truth == c) & (chosen != c)], minlength=len(names)) for c in range(len(names))
    ])  # fmt: skip
    recall = np.array([(chosen[truth == c] == c).mean() if present[c] else np.nan for c in range(len(names))])
    table = pd.DataFrame(
        {
            "recall": recall, "cases": present, "AUROC against the others": auroc(own, one_hot),
            "most often taken for": [names[row.argmax()] if row.any() else "" for row in confused],
        },
        index=pd.Index(names, name="finding"),
    )  # fmt: skip
    return Result(
        task="zero-shot among classes", name="balanced accuracy", value=float(found.value), low=float(found.low),
        high=float(found.high), controls=controls, n=len(rows), unit="studies with one finding", resamples=resamples,
        split=exam.where, seed=seed, table=table,
        prompts=f"{wording(names, kind)}: {len(sentences)} sentences, such as {sentences[0]!r}",
        rule=(
            f"the class with the greatest similarity (ensemble by {ensemble}), mean recall over {len(names)} classes; "
            "no standardisation over the studies, so an answer depends on its own image only; studies with no or several "
            "findings or unknown labels are left out; studies resampled"
        ),
    )  # fmt: skip
