"""Encode each image and each text once, whatever is asked of them afterwards.

`encode_collection` turns a collection into features; `Examination` keeps those of one model on one held-out split, and
those of its random-weight control, so that all tasks share them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..budget import Budget
from ..budget import budget as budget_of
from ..collate import collate
from ..encoders.features import ImageFeatures, TextFeatures
from ..errors import KitError
from ..study import Collection, Tokenizer


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode without gradients; afterwards every module is in the mode it was in, also after an error."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield model
    finally:
        for module, training in before.items():
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    """Where the model's weights are."""
    return next(model.parameters()).device


@dataclass(frozen=True)
class Encoded:
    """N encoded studies, on the CPU.

    image:           ImageFeatures of N images, before projection: what `model.similarity` reads
    text:            TextFeatures of N texts, padded to one length
    image_embedding: (N, D) unit vectors of the joint space
    text_embedding:  (N, D) unit vectors
    labels:          (N, F) float32: 1 present, 0 absent, NaN uncertain or unknown
    sentences:       the N texts
    """

    image: ImageFeatures
    text: TextFeatures
    image_embedding: Tensor
    text_embedding: Tensor
    labels: Tensor
    label_names: tuple[str, ...]
    sentences: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.image_embedding)


def encode_collection(
    model, tokenizer: Tokenizer, collection: Collection, *, budget: str | Budget | None = None,
    batch_size: int | None = None, image_size: int | None = None, text_length: int | None = None,
    text: str = "report", view: str = "frontal", device: str | torch.device | None = None, seed: int = 0,
) -> Encoded:  # fmt: skip
    """Encode every study once, in evaluation mode; the mode and device of the model are restored.

    Sizes come from `budget` unless given. The features do not depend on how the studies fall into batches.
    """
    size = budget_of(budget)
    batch_size = batch_size or 2 * size.batch_size  # no gradients are kept, so twice the training batch fits
    if len(collection) == 0:
        raise KitError(f"{collection.name} has no study to encode: choose another split or data set")
    home = device_of(model)
    device = home if device is None else torch.device(device)
    images, texts, joint, labels, sentences = [], [], [], [], []
    try:
        model.to(device)
        with evaluating(model):
            for start in range(0, len(collection), batch_size):
                batch = collate(
                    collection, range(start, min(start + batch_size, len(collection))), tokenizer=tokenizer,
                    image_size=image_size or size.image_size, text_length=text_length or size.text_length,
                    views=(view,), texts=(text,), seed=seed,
                ).to(device)  # fmt: skip
                image, read = model.encode_image(batch.images), model.encode_text(batch.tokens)
                joint.append((model.embed_image(image).float().cpu(), model.embed_text(read).float().cpu()))
                images.append(image_to(image, "cpu"))
                texts.append(text_to(read, "cpu"))
                labels.append(batch.labels.cpu())
                sentences.extend(batch.sentences)
    finally:
        model.to(home)
    # Joined outside inference mode, so that a probe may train on the features.
    return Encoded(
        image=join_images(images), text=join_texts(texts),
        image_embedding=torch.cat([image for image, _ in joint]), text_embedding=torch.cat([t for _, t in joint]),
        labels=torch.cat(labels), label_names=tuple(collection.label_names), sentences=tuple(sentences),
    )  # fmt: skip


def encode_texts(
    model, tokenizer: Tokenizer, texts: Sequence[str], *, length: int, batch_size: int = 256
) -> TextFeatures:
    """Features of texts that belong to no study, such as prompts, on the CPU; evaluation mode."""
    if not texts:
        raise KitError("no text to encode: give at least one prompt")
    device, parts = device_of(model), []
    with evaluating(model):
        for start in range(0, len(texts), batch_size):
            tokens = tokenizer.encode(list(texts[start : start + batch_size]), length=length).to(device)
            parts.append(text_to(model.encode_text(tokens), "cpu"))
    return join_texts(parts)


def similarity(model, image: ImageFeatures, text: TextFeatures, *, chunk: int = 256) -> Tensor:
    """`model.similarity` of features on the CPU, (N images, M texts) float32, `chunk` images at a time."""
    device, rows = device_of(model), []
    with evaluating(model):
        text = text_to(text, device)
        for start in range(0, len(image.pooled), chunk):
            part = image_to(images_at(image, slice(start, start + chunk)), device)
            rows.append(model.similarity(part, text).float().cpu())
    return torch.cat(rows)  # (N, M)


def mean_embedding(model, text: TextFeatures) -> Tensor:
    """The renormalised mean of the unit embeddings of some texts, such as the wordings of one phrase, (D,) on the CPU."""
    with evaluating(model):
        mean = model.embed_text(text_to(text, device_of(model))).mean(0)
    return F.normalize(mean, dim=0).float().cpu().clone()


def image_to(image: ImageFeatures, device) -> ImageFeatures:
    return ImageFeatures(image.pooled.to(device), image.patches.to(device), image.grid)


def text_to(text: TextFeatures, device) -> TextFeatures:
    return TextFeatures(text.pooled.to(device), text.tokens.to(device), text.mask.to(device))


def images_at(image: ImageFeatures, rows) -> ImageFeatures:
    """The features of some of the images."""
    return ImageFeatures(image.pooled[rows], image.patches[rows], image.grid)


def texts_at(text: TextFeatures, rows) -> TextFeatures:
    """The features of some of the texts."""
    return TextFeatures(text.pooled[rows], text.tokens[rows], text.mask[rows])


def join_images(parts: Sequence[ImageFeatures]) -> ImageFeatures:
    return ImageFeatures(
        torch.cat([part.pooled for part in parts]), torch.cat([part.patches for part in parts]), parts[0].grid
    )


def join_texts(parts: Sequence[TextFeatures]) -> TextFeatures:
    """One TextFeatures; shorter texts get masked zeros, because each batch was padded to its own longest text."""
    length = max(part.mask.shape[1] for part in parts)

    def grown(values: Tensor) -> Tensor:
        out = values.new_zeros((len(values), length, *values.shape[2:]))
        out[:, : values.shape[1]] = values
        return out

    return TextFeatures(
        torch.cat([part.pooled for part in parts]),
        torch.cat([grown(part.tokens) for part in parts]),  # (N, T, D)
        torch.cat([grown(part.mask) for part in parts]),  # (N, T)
    )


def randomised(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """A copy of the model with all weights drawn anew: the control that has the architecture and has learned nothing.

    Modules are reset by their own `reset_parameters`; parameters that belong to no such module (class tokens,
    positions) are drawn from N(0, 0.02²). Single numbers, such as a temperature, are kept: they rank nothing.
    """
    model = copy.deepcopy(model)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
                continue
            for parameter in module.parameters(recurse=False):
                if parameter.ndim:
                    parameter.normal_(std=0.02)
    return model


def held_out(collection: Collection, split: str | None, *, most: int | None = None, seed: int = 0) -> Collection:
    """The studies of `split` (all of them when it is None), at most `most`, drawn at random and kept in order."""
    part = collection if split is None else collection.split(split)
    if len(part) == 0:
        raise KitError(f"{collection.name} has no study in the split {split!r}: name another, or give split=None")
    if most is not None and len(part) > most:
        chosen = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))[:most].sort().values
        part = part.subset(chosen.tolist())
    return part


class Examination:
    """One model before one held-out split: images and texts are encoded on first use, once, for all tasks.

    Also keeps the same for the random-weight control (`control`), which is examined on the very same studies.
    """

    def __init__(
        self, model, tokenizer: Tokenizer, collection: Collection, *, budget: str | Budget | None = None,
        split: str | None = "test", text: str = "report", seed: int = 0,
    ):  # fmt: skip
        self.model, self.tokenizer, self.budget = model, tokenizer, budget_of(budget)
        self.collection = held_out(collection, split, most=self.budget.test_studies, seed=seed)
        self.split, self.text, self.seed = split, text, seed
        self._prompts: dict[str, int] = {}
        self._prompt_features: TextFeatures | None = None

    def __len__(self) -> int:
        return len(self.collection)

    @property
    def where(self) -> str:
        """Which studies these are, for a result's `split`."""
        part = "all studies given" if self.split is None else f"the {self.split} split"
        return f"{part} of {self.collection.name.removesuffix(f'/{self.split}')}, {len(self)} studies"

    @cached_property
    def encoded(self) -> Encoded:
        return encode_collection(
            self.model, self.tokenizer, self.collection, budget=self.budget, text=self.text, seed=self.seed
        )

    @cached_property
    def control(self) -> Examination:
        """The same examination of a copy of the model with random weights."""
        other = copy.copy(self)
        for name in ("encoded", "control"):
            other.__dict__.pop(name, None)
        other.model, other._prompts, other._prompt_features = randomised(self.model, seed=self.seed), {}, None
        return other

    def prompts(self, texts: Sequence[str]) -> TextFeatures:
        """Features of `texts`, each distinct one encoded once in the life of this examination."""
        new = [text for text in dict.fromkeys(texts) if text not in self._prompts]
        if new:
            features = encode_texts(self.model, self.tokenizer, new, length=self.budget.text_length)
            known = self._prompt_features
            self._prompt_features = features if known is None else join_texts([known, features])
            self._prompts.update({text: len(self._prompts) + i for i, text in enumerate(new)})
        return texts_at(self._prompt_features, torch.tensor([self._prompts[text] for text in texts]))

    def scores(self, texts: Sequence[str]) -> Tensor:
        """`model.similarity` of every study's image with `texts`, (N, M)."""
        return similarity(self.model, self.encoded.image, self.prompts(texts))
