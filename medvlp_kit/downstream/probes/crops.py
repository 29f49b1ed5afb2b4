"""Crop consistency: is there less evidence for a finding once it is cut away, and is it still seen in a part that keeps it?

Two square parts of one picture are compared: one that holds the finding's boxes whole, one that holds none of them. As
parts differ in more than the finding, the same two parts of a picture without it stand beside: there, nothing should change.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ...augment.crops import crop
from ...budget import Budget
from ...errors import KitError
from ...study import Collection, Tokenizer
from ..encode import Examination, join_images
from ..prompts import prompt_set
from ..result import Estimate, Result
from .blank import encode_pictures, evidence
from .cases import balanced_mean, report, verdict

SIDE, STEPS, MOST, BATCH = 0.6, 9, 400, 256


def frames(size: int) -> np.ndarray:
    """The candidate parts, (STEPS², 4) in pixels: squares of SIDE of the picture's side at even steps."""
    start = np.linspace(0, (1 - SIDE) * size, STEPS)
    x0, y0 = (corner.ravel() for corner in np.meshgrid(start, start))
    return np.stack([x0, y0, x0 + SIDE * size, y0 + SIDE * size], axis=1)


def crop_cases(exam: Examination) -> Iterator[tuple[int, str, np.ndarray, np.ndarray]]:
    """(study, finding, parts that keep all of its boxes whole, parts that show nothing of them), where there are both."""
    size, collection = exam.budget.image_size, exam.collection
    parts = frames(size)  # (P, 4)
    for i in range(len(collection)):
        boxes: dict[str, list] = {}
        for region in collection.regions(i, size=size):
            if region.label in collection.label_names:
                boxes.setdefault(region.label, []).append(region.box)
        for name, some in boxes.items():
            box = np.array(some, dtype=float)[:, None]  # (R, 1, 4)
            whole = (box[..., :2] >= parts[:, :2] - 1e-6).all(-1) & (box[..., 2:] <= parts[:, 2:] + 1e-6).all(-1)  # (R, P)
            apart = (box[..., :2] >= parts[:, 2:]) | (box[..., 2:] <= parts[:, :2])
            keep, cut = parts[whole.all(0)], parts[apart.any(-1).all(0)]
            if len(keep) and len(cut):
                yield i, name, keep, cut


def crop_consistency(
    model, tokenizer: Tokenizer, collection: Collection, *, budget: str | Budget | None = None,
    split: str | None = "test", seed: int = 0, kind: str = "lexicon", examination: Examination | None = None,
) -> Result:  # fmt: skip
    """P[evidence in the part that keeps the finding > evidence in a part that shows none of it]."""
    exam = examination or Examination(model, tokenizer, collection, budget=budget, split=split, seed=seed)
    generator = np.random.default_rng(seed)
    cases = list(crop_cases(exam))
    if not cases:
        raise KitError(f"{exam.collection.name} has no finding that a part of the picture could show and another could not")
    if len(cases) > MOST:
        cases = [cases[i] for i in np.sort(generator.choice(len(cases), MOST, replace=False))]
    studies, names = np.array([case[0] for case in cases]), np.array([case[1] for case in cases])
    drawn = torch.from_numpy(np.stack([[some[generator.integers(len(some))] for some in case[2:]] for case in cases], axis=1))
    labels = exam.collection.labels(range(len(exam))).numpy()
    column = [exam.collection.label_names.index(name) for name in names]
    without = [np.flatnonzero(labels[:, c] == 0) for c in column]
    other = np.array([some[generator.integers(len(some))] if len(some) else -1 for some in without])  # (K,)
    known = list(dict.fromkeys(names.tolist()))
    prompts, place = prompt_set(known, kind=kind), np.array([known.index(name) for name in names])

    def right(of: Examination, chosen: np.ndarray) -> np.ndarray:
        """Is there more evidence in the first part than in the second? chosen: (K,) studies, -1 for none."""
        rows, levels = np.flatnonzero(chosen >= 0), []
        for part in drawn:  # the parts that keep, then those that cut, (K, 4)
            encoded = [
                encode_pictures(of, crop(of.collection.images(chosen[few].tolist(), size=of.budget.image_size), part[few]))
                for few in np.array_split(rows, -(-len(rows) // BATCH))
            ]
            levels.append(evidence(of, join_images(encoded), prompts)[np.arange(len(rows)), place[rows]])
        return verdict(*levels)

    absent = other >= 0
    controls = []
    if absent.any():
        found = balanced_mean(right(exam, other), other[absent], resamples=exam.budget.resamples, seed=seed)
        controls = [Estimate.of("same parts, finding absent", found)]
    return report(
        exam, task="crop consistency", studies=studies, names=names, own=right(exam, studies),
        random=right(exam.control, studies), chance=0.5, seed=seed, controls=controls, prompts=str(prompts),
        rule=(
            f"share of findings with more evidence (affirming minus denying sentences) in a square part of {SIDE:.0%} of "
            "the picture's side that holds their boxes whole than in one that holds nothing of them, both drawn at random "
            f"and enlarged to the size of the picture; at most {MOST} findings, of those for which there are both parts; "
            "ties count half; the scorer of training; studies resampled"
        ),
    )  # fmt: skip
