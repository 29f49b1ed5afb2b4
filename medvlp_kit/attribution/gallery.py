"""One set of cases that every kind of map is asked about: images, phrases, boxes, and who shares a study.

A kind of map is a function (model, images (B, C, H, W), asked) -> maps (B, H, W). `Gallery.maps` runs one over all
cases, of the model itself or of another, with each case's own phrase and picture or with those of another case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ..budget import Budget
from ..budget import budget as budget_of
from ..downstream.encode import encode_texts, held_out, mean_embedding
from ..downstream.grounding import Cases, contribution_map, similarity_map
from ..downstream.prompts import normal_statements
from ..errors import KitError
from ..study import Collection, Tokenizer, Tokens
from .image_side import grad_cam, integrated_gradients, occlusion
from .scoring import by_cosine


@dataclass(frozen=True)
class Asked:
    """What B maps are asked: the phrase of each, and the normal statement it is compared with.

    sentences: one wording of each phrase; tokens: the same as Tokens (B, T); normal: one normal statement, Tokens (1, T)
    text (B, D), against (1, D): unit vectors, the renormalised means over all wordings, for models that rank by cosine
    """

    sentences: tuple[str, ...]
    tokens: Tokens
    normal: Tokens
    text: Tensor
    against: Tensor

    def rows(self, index: Tensor) -> Asked:
        """Some of the rows, in the order given."""
        tokens = Tokens(self.tokens.ids[index], self.tokens.mask[index])
        sentences = tuple(self.sentences[i] for i in index.tolist())
        return replace(self, sentences=sentences, tokens=tokens, text=self.text[index])

    def question(self, model: nn.Module) -> tuple[Tokens | Tensor, Tokens | Tensor]:
        """(text, against) in the form the model's scorer takes."""
        return (self.text, self.against) if by_cosine(model) else (self.tokens, self.normal)


Kind = Callable[[nn.Module, Tensor, Asked], Tensor]


def _similarity(model: nn.Module, images: Tensor, asked: Asked) -> Tensor:
    return similarity_map(model, images, asked.text)


def _contribution(model: nn.Module, images: Tensor, asked: Asked) -> Tensor:
    return contribution_map(model, images, asked.text, against=asked.against)


def _explained(explain: Callable[..., Tensor], **options) -> Kind:
    def kind(model: nn.Module, images: Tensor, asked: Asked) -> Tensor:
        text, against = asked.question(model)
        return explain(model, images, text, against=against, **options)

    return kind


KINDS: dict[str, Kind] = {
    "similarity": _similarity,
    "contribution": _contribution,
    "Grad-CAM": _explained(grad_cam),
    "integrated gradients": _explained(integrated_gradients, steps=16),
    "occlusion": _explained(occlusion),
}


class Gallery:
    """The cases of one held-out split, their images and their phrases.

    cases: `downstream.grounding.Cases`, K of them; images (S, C, H, W): of the studies that have a case
    which (K,): the image of each case
    studies: at most so many studies of the split; kind: whose wording the phrases have (see `prompts.phrases`)
    """

    def __init__(
        self, model: nn.Module, tokenizer: Tokenizer, collection: Collection, *, budget: str | Budget | None = None,
        split: str | None = "test", studies: int | None = None, seed: int = 0, kind: str = "lexicon",
    ):  # fmt: skip
        self.model, self.tokenizer, self.budget, self.seed = model, tokenizer, budget_of(budget), seed
        part = held_out(collection, split, most=studies or self.budget.test_studies, seed=seed)
        self.size = self.budget.image_size
        self.cases = Cases(part, size=self.size)
        if not len(self.cases):
            raise KitError(f"{collection.name} has no boxes in the frontal view, so maps have nothing to point at")
        used, which = np.unique(self.cases.studies, return_inverse=True)
        self.which = torch.from_numpy(which)
        self.images = part.images(used.tolist(), size=self.size)
        self.wordings = self.cases.wordings(kind)
        self.name = f"{collection.name}, {'all' if split is None else split}: {len(self)} cases in {len(used)} studies"
        self._own: Asked | None = None

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def questions(self) -> list[tuple[str, str | None]]:
        """(finding, side) of each case."""
        return list(zip(self.cases.labels, self.cases.sides, strict=True))

    def asked(self, model: nn.Module | None = None) -> Asked:
        """All K questions as `model` (the gallery's own by default) reads them."""
        if model is None or model is self.model:
            self._own = self._own or self._read(self.model)
            return self._own
        return self._read(model)

    def _read(self, model: nn.Module) -> Asked:
        length = self.budget.text_length

        def mean(texts: list[str]) -> Tensor:
            return mean_embedding(model, encode_texts(model, self.tokenizer, texts, length=length))

        means = {case: mean(texts) for case, texts in self.wordings.items()}
        normal = normal_statements()
        sentences = tuple(self.wordings[case][0] for case in self.questions)
        return Asked(
            sentences=sentences, tokens=self.tokenizer.encode(list(sentences), length=length),
            normal=self.tokenizer.encode(normal[:1], length=length),
            text=torch.stack([means[case] for case in self.questions]),
            against=mean(normal)[None],
        )  # fmt: skip

    def maps(
        self, kind: Kind, *, model: nn.Module | None = None, asked: Asked | None = None,
        phrases: np.ndarray | None = None, pictures: np.ndarray | None = None, chunk: int = 32,
    ) -> Tensor:  # fmt: skip
        """The maps of all cases, (K, H, W).

        phrases, pictures (K,): whose phrase and whose picture each case gets, its own when None
        asked: the phrases as another model reads them, where only the image side of `model` differs
        """
        model = self.model if model is None else model
        asked = self.asked(model) if asked is None else asked
        own = np.arange(len(self))
        phrases = torch.from_numpy(own if phrases is None else phrases)
        which = self.which[torch.from_numpy(own if pictures is None else pictures)]
        parts = [
            kind(model, self.images[which[start : start + chunk]], asked.rows(phrases[start : start + chunk]))
            for start in range(0, len(self), chunk)
        ]
        maps = torch.cat(parts)
        if maps.shape != (len(self), self.size, self.size):
            raise KitError(f"a kind of map gives (B, {self.size}, {self.size}) for B images, this one {tuple(maps.shape)}")
        return maps

    def others(self, *, seed: int, differ: str) -> np.ndarray:
        """(K,) for each case another one, drawn at random: one with a different "phrase", or of a different "study"."""
        numbers = {case: number for number, case in enumerate(dict.fromkeys(self.questions))}
        labels = {"phrase": np.array([numbers[case] for case in self.questions]), "study": self.cases.studies}
        if differ not in labels:
            raise KitError(f"differ={differ!r}: another case differs in 'phrase' or in 'study'")
        values, generator = labels[differ], np.random.default_rng(seed)
        if len(np.unique(values)) < 2:
            raise KitError(f"all cases share one {differ}, so there is no other to shuffle with: take more studies")
        return np.array([generator.choice(np.flatnonzero(values != value)) for value in values])
