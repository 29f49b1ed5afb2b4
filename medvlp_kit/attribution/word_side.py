"""Which words make the similarity: integrated gradients over token embeddings, and leaving words out, through captum.

Both take images (B, C, H, W) and their texts as Tokens and give signed numbers (B, T) on the CPU, 0 at padding and at
[CLS] and [SEP]; `words` puts the pieces of a word together again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..downstream.encode import device_of
from ..encoders.features import ImageFeatures
from ..errors import KitError
from ..objectives.pieces import continues_word
from ..study import Tokens
from .image_side import AT_ONCE
from .scoring import by_cosine, explaining, pair_similarity


class WordScore(nn.Module):
    """score(ids (B, T), *arguments) -> (B,): the similarity of each text with its own image, for captum."""

    def __init__(self, model: nn.Module, images: Tensor, *, padding: int | None = None):
        super().__init__()
        self.model, self.padding, self.cosine = model, padding, by_cosine(model)
        with torch.no_grad():
            image = model.encode_image(images.to(device_of(model)))
            self.grid = image.grid
            self._image = (model.embed_image(image),) if self.cosine else (image.pooled, image.patches)

    def arguments(self, mask: Tensor) -> tuple[Tensor, ...]:
        """What captum passes along with the ids: the mask and the image, one row a text."""
        if len(self._image[0]) not in (1, len(mask)):
            raise KitError(f"{len(self._image[0])} images and {len(mask)} texts: give one image to each text, or one to all")
        return (mask, *(part.expand(len(mask), *part.shape[1:]) for part in self._image))

    def forward(self, ids: Tensor, mask: Tensor, *image: Tensor) -> Tensor:
        if self.padding is not None:
            mask = mask & (ids != self.padding)  # a word that was taken out is not read as an empty word
        text = self.model.encode_text(Tokens(ids, mask))
        if self.cosine:
            return (image[0] * self.model.embed_text(text)).sum(-1)
        return pair_similarity(self.model, ImageFeatures(*image, self.grid), text)


def word_gradients(model: nn.Module, images: Tensor, tokens: Tokens, *, tokenizer, steps: int = 32) -> Tensor:
    """Integrated gradients over the token embeddings, (B, T): each piece's share of the similarity.

    The baseline has [PAD]'s embedding in the place of every word; [CLS], [SEP] and the mask stay. Complete: a row sums
    to score(text) - score(baseline), up to the error of the `steps`-point rule.
    """
    from captum.attr import LayerIntegratedGradients

    with explaining(model):
        tokens = tokens.to(device_of(model))
        number = WordScore(model, images)
        shares = LayerIntegratedGradients(number, word_embeddings(model)).attribute(
            tokens.ids, baselines=wordless(tokens, tokenizer), n_steps=steps,
            additional_forward_args=number.arguments(tokens.mask), internal_batch_size=max(AT_ONCE, len(tokens.ids)),
        )  # fmt: skip  (B, T, D)
    return shares.detach().sum(-1).float().cpu()


def word_occlusion(
    model: nn.Module, images: Tensor, tokens: Tokens, *, tokenizer, groups: Tensor | None = None
) -> Tensor:
    """How much the similarity falls when a word is left out, (B, T), the same for all pieces of a word.

    groups (B, T) int64: pieces with one number leave together; None takes words (see `word_groups`). The positions of
    the other words stay. [CLS] and [SEP] always stay, so their numbers are 0.
    """
    from captum.attr import FeatureAblation

    with explaining(model), torch.no_grad():
        tokens = tokens.to(device_of(model))
        groups = word_groups(tokens, tokenizer) if groups is None else groups.to(tokens.ids.device)
        number = WordScore(model, images, padding=tokenizer.pad_id)
        falls = FeatureAblation(number).attribute(
            tokens.ids, baselines=wordless(tokens, tokenizer), feature_mask=groups,
            additional_forward_args=number.arguments(tokens.mask),
        )  # fmt: skip
    kept = _words(tokens, tokenizer)
    return (falls * kept).float().cpu()


def wordless(tokens: Tokens, tokenizer) -> Tensor:
    """The ids (B, T) with every word replaced by [PAD]."""
    return torch.where(_words(tokens, tokenizer), torch.full_like(tokens.ids, tokenizer.pad_id), tokens.ids)


def word_groups(tokens: Tokens, tokenizer) -> Tensor:
    """(B, T) int64: the number of the word each piece belongs to, counted from 1; 0 for what is no word."""
    vocabulary = torch.zeros(max(tokenizer.vocabulary.values()) + 1, dtype=torch.bool)
    vocabulary[[number for piece, number in tokenizer.vocabulary.items() if continues_word(piece)]] = True
    inner = vocabulary.to(tokens.ids.device)[tokens.ids]  # (B, T)
    real = _words(tokens, tokenizer)
    return (real & ~inner).long().cumsum(1) * real


def words(tokens: Tokens, values: Tensor, tokenizer, *, how: str = "sum") -> list[list[tuple[str, float]]]:
    """For each text, its words with their numbers from values (B, T); how: "sum" or "mean" over a word's pieces."""
    if how not in ("sum", "mean"):
        raise KitError(f"how={how!r}: the numbers of a word's pieces are put together by 'sum' or by 'mean'")
    pieces = {number: piece for piece, number in tokenizer.vocabulary.items()}
    found: list[list[tuple[str, float]]] = []
    for ids, groups, row in zip(tokens.ids, word_groups(tokens, tokenizer), values, strict=True):
        together: dict[int, tuple[str, list[float]]] = {}
        for number, group, value in zip(ids.tolist(), groups.tolist(), row.tolist(), strict=True):
            if group:
                text, shares = together.setdefault(group, ("", []))
                together[group] = (text + pieces[number].removeprefix("##"), [*shares, value])
        found.append([(text, sum(v) / (len(v) if how == "mean" else 1)) for text, v in together.values()])
    return found


def word_embeddings(model: nn.Module) -> nn.Embedding:
    """The table of token embeddings of the model's text encoder."""
    size = model.text_encoder.vocabulary_size
    tables = [m for m in model.text_encoder.modules() if isinstance(m, nn.Embedding) and m.num_embeddings == size]
    if not tables:
        raise KitError(f"{type(model.text_encoder).__name__} has no embedding table of its {size} tokens to attribute to")
    return tables[0]


def find(tokens: Tokens, phrase: Sequence[str] | str, tokenizer) -> Tensor:
    """(B, T) bool: the pieces of the words of `phrase`, wherever they stand: what `similarity_maps` calls chosen."""
    wanted = {word.casefold() for word in (phrase.split() if isinstance(phrase, str) else phrase)}
    groups = word_groups(tokens, tokenizer)
    chosen = torch.zeros_like(tokens.mask)
    for row, spelled in enumerate(words(tokens, torch.zeros(tokens.ids.shape), tokenizer)):
        for number, (word, _) in enumerate(spelled, start=1):
            if word in wanted:
                chosen[row] |= groups[row] == number
    return chosen


def _words(tokens: Tokens, tokenizer) -> Tensor:
    special = torch.tensor([tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id], device=tokens.ids.device)
    return tokens.mask & ~torch.isin(tokens.ids, special)
