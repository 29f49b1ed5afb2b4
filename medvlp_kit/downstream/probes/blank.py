"""Blank image: what does the model say of a picture that shows nothing?

The blank picture's evidence for a finding is taken as the threshold: what is more than nothing shows should speak for the
finding, what is less against it. A model whose "nothing" lies at one end of its scale answers from something else.
"""

from __future__ import annotations

import numpy as np
import torch

from ...budget import Budget
from ...study import Collection, Tokenizer
from ..classification import pair_means
from ..encode import Examination, device_of, evaluating, image_to, similarity
from ..prompts import PromptSet, prompt_set
from ..result import Estimate, Result
from .cases import balanced_strata, known_cases, report, verdict

BLANKS = ("black", "grey", "white")


def blank_pictures(exam: Examination, *, studies: int = 64) -> torch.Tensor:
    """(3, C, H, W): black, the mean grey of the first studies, white."""
    pictures = exam.collection.images(range(min(studies, len(exam))), size=exam.budget.image_size)
    grey = pictures.mean()
    return torch.stack([torch.full_like(pictures[0], level) for level in (0.0, float(grey), 1.0)])


def encode_pictures(exam: Examination, pictures: torch.Tensor):
    """ImageFeatures of pictures that belong to no study, on the CPU."""
    with evaluating(exam.model):
        return image_to(exam.model.encode_image(pictures.to(device_of(exam.model))), "cpu")


def evidence(exam: Examination, image, prompts: PromptSet) -> np.ndarray:
    """How much each picture speaks for each finding: mean s(image, affirmed) - mean s(image, denied), (N, C)."""
    pairs = pair_means(similarity(exam.model, image, exam.prompts(prompts.sentences)), prompts)  # (N, C, 2)
    return (pairs[..., 0] - pairs[..., 1]).double().numpy()


def blank_image(
    model, tokenizer: Tokenizer, collection: Collection, *, budget: str | Budget | None = None,
    split: str | None = "test", seed: int = 0, kind: str = "lexicon", examination: Examination | None = None,
) -> Result:  # fmt: skip
    """Balanced accuracy of "more evidence than in a blank picture means present"."""
    exam = examination or Examination(model, tokenizer, collection, budget=budget, split=split, seed=seed)
    cases = known_cases(exam)
    names = list(dict.fromkeys(name for _, name, _ in cases))
    prompts, pictures = prompt_set(names, kind=kind), blank_pictures(exam)
    studies, there = np.array([i for i, _, _ in cases]), np.array([present for *_, present in cases])
    column = np.array([names.index(name) for _, name, _ in cases])

    def right(of: Examination) -> tuple[np.ndarray, np.ndarray]:
        nothing = evidence(of, encode_pictures(of, pictures), prompts)  # (3, C)
        shown, level = evidence(of, of.encoded.image, prompts)[studies, column], nothing.mean(0)[column]  # (K,)
        return np.where(there, verdict(shown, level), verdict(level, shown)), nothing

    own, nothing = right(exam)
    random, _ = right(exam.control)
    affirmed = Estimate("share of findings affirmed of blank pictures", float((nothing > 0).mean()))

    def levels(name: str) -> dict:
        at = nothing.mean(1) if name == "all" else nothing[:, names.index(name)]
        return {f"evidence in {blank}": float(value) for blank, value in zip(BLANKS, at)}

    return report(
        exam, task="blank image", metric="balanced accuracy", studies=studies, names=np.array(names)[column],
        own=own, random=random, strata=balanced_strata(cases), chance=0.5, seed=seed, unit="statements",
        also=(affirmed,), columns=levels, prompts=str(prompts),
        rule=(
            "evidence = mean score of affirming minus denying sentences; for each finding the share of studies with it "
            "that have more evidence than blank pictures (the mean of black, mean grey and white), and of those without "
            "it that have less; unweighted mean over findings and both shares; ties count half; unknown labels left out; "
            "the scorer of training; studies resampled"
        ),
    )  # fmt: skip
