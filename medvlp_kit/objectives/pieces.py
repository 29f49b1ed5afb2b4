"""A mark on some pieces of the vocabulary: which ones continue a word, which ones end a sentence."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import KitError


def continues_word(piece: str) -> bool:
    """WordPiece's own mark."""
    return piece.startswith("##")


def ends_sentence(piece: str) -> bool:
    return piece in (".", "!", "?", ";")


class MarkedPieces(nn.Module):
    """(B, T) ids -> (B, T) bool, from a table (V,) in a buffer, so that a checkpoint needs no tokenizer.

    size: the text encoder's `vocabulary_size`; `read` fills the table with `rule(piece)` of every piece.
    """

    def __init__(self, size: int, rule: Callable[[str], bool]):
        super().__init__()
        self.rule = rule
        self.register_buffer("table", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("was_read", torch.tensor(False))
        self._certain = False

    def read(self, tokenizer) -> None:
        """Learn the pieces of the kit's tokenizer, or of one from transformers."""
        vocabulary = tokenizer.vocabulary if hasattr(tokenizer, "vocabulary") else tokenizer.tokenizer.get_vocab()
        marked = [number for piece, number in vocabulary.items() if self.rule(piece)]
        if max(vocabulary.values()) >= len(self.table):
            raise KitError(
                f"the tokenizer has {max(vocabulary.values()) + 1} tokens, the text encoder knows {len(self.table)}: build "
                "both with one vocabulary_size"
            )
        self.table.zero_()[marked] = True
        self.was_read.fill_(True)

    def forward(self, ids: Tensor) -> Tensor:
        self._certain = self._certain or bool(self.was_read)  # the device is asked once
        if not self._certain:
            raise KitError("words and sentences cannot be told apart yet: call objective.read_tokenizer(tokenizer) first")
        return self.table[ids]


def real_words(mask: Tensor) -> Tensor:
    """(B, T) bool: the real tokens without the first and the last of each text, [CLS] and [SEP]."""
    number = mask.long().cumsum(dim=1)  # 1 for the first real token
    return mask & (number > 1) & (number < number[:, -1:])


def sentence_numbers(ends: Tensor, words: Tensor) -> Tensor:
    """(B, T) int64, counted from 0: the sentence of each token; the full stop belongs to what it ends.

    ends (B, T) bool, True on pieces that end a sentence; words (B, T) bool, as `real_words` gives.
    """
    stops = (ends & words).long()  # (B, T)
    return stops.cumsum(dim=1) - stops
