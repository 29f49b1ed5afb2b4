"""What a masking objective must know of the tokenizer: special tokens, which pieces continue a word, medical words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

import torch
import yaml
from torch import Tensor, nn

from ..assets import asset
from ..errors import KitError
from ..phantoms.lexicon import LANGUAGES, agree, lexicon
from ..text import MASK, SPECIAL

_BASE = 6364136223846793005  # odd, so that multiplying by it modulo 2^64 loses nothing
_ENDINGS = [(plural, feminine) for plural in (False, True) for feminine in (False, True)]


@lru_cache(maxsize=1)
def medical_words() -> tuple[str, ...]:
    """The words of the lexicon's noun phrases, sides, zones and degrees, in every language, without function words.

    MMBERT masks only words of a list of medical keywords drawn from its captions; this list plays that part.
    """
    found: set[str] = set()
    for language in LANGUAGES:
        data = lexicon(language).data
        phrases = [side["word"] for side in data["sides"].values()] + [z for zone in data["zones"].values() for z in zone]
        for finding in data["findings"].values():
            for key in ("nouns", "severe_nouns", "telegraphic", "negatives", "held_out"):
                phrases += [re.sub(r"^[mf]:", "", phrase) for phrase in finding.get(key, ())]
            phrases += [word for words in finding.get("severity", {}).values() for word in words]
        with open(asset("lexicon", f"labels_{language}.yaml"), encoding="utf-8") as file:
            rules = yaml.safe_load(file)
        function_words = [rules["prepositions"], *rules["conjunctions"].values(), *rules["companions"], *data["article"].values()]
        plain = {word for text in function_words for form in _ENDINGS for word in _words(agree(text, *form))}
        found |= {word for phrase in phrases for form in _ENDINGS for word in _words(agree(phrase, *form))} - plain
    return tuple(sorted(word for word in found if len(word) > 2))


class Vocabulary(nn.Module):
    """Facts about every token id, kept in buffers: a checkpoint brings them back without the tokenizer.

    size: the text encoder's `vocabulary_size`. Before `read` it knows the special ids of `text.ReportTokenizer` alone.
    words: those that count as medical; None takes `medical_words()`.
    """

    def __init__(self, size: int, *, words: Iterable[str] | None = None):
        super().__init__()
        given = medical_words() if words is None else [part for word in words for part in _words(word)]
        self.words = tuple(dict.fromkeys(given))
        special = torch.zeros(size, dtype=torch.bool)
        special[: len(SPECIAL)] = True
        self.register_buffer("special", special)  # (V,)
        self.register_buffer("inner", torch.zeros(size, dtype=torch.bool))  # (V,) pieces that continue a word
        self.register_buffer("medical", torch.zeros(len(self.words), dtype=torch.int64))  # one number a medical word
        self.register_buffer("mask_id", torch.tensor(MASK))
        self.register_buffer("was_read", torch.tensor(False))
        self._certain = False

    def read(self, tokenizer) -> Vocabulary:
        """Learn the facts from the tokenizer the batches are made with. Returns itself."""
        pieces, special, mask_id = _facts(tokenizer)
        if len(self.special) < tokenizer.vocabulary_size:
            raise KitError(
                f"the tokenizer has {tokenizer.vocabulary_size} tokens, the text encoder knows {len(self.special)}: build "
                f"it with vocabulary_size={tokenizer.vocabulary_size}"
            )
        if mask_id is None:
            raise KitError("this tokenizer has no [MASK] token: masked language modelling needs one, as BERT's has")
        self.special.zero_()[list(special)] = True
        self.special[tokenizer.vocabulary_size :] = True  # ids that no text uses are never drawn as replacements
        self.inner.zero_()[[number for piece, number in pieces.items() if piece.startswith("##")]] = True
        self.mask_id.fill_(mask_id)
        if self.words:
            ids = tokenizer.encode(list(self.words), length=64).ids.to(self.inner.device)
            self.medical.copy_(word_numbers(ids, self.word_starts(ids))[:, 1])  # [CLS] word [SEP]
        self.was_read.copy_(self.inner.any())  # without "##" pieces it is no WordPiece, and words cannot be told
        return self

    def must_be_read(self) -> None:
        """One line of error where words matter and no tokenizer was read; the device is asked once."""
        self._certain = self._certain or bool(self.was_read)
        if not self._certain:
            raise KitError("whole and medical words need a WordPiece tokenizer: call objective.read_tokenizer(tokenizer) first")

    def word_starts(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> (B, T) int64: the position of the first piece of the word each token belongs to."""
        places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return places.masked_fill(self.inner[ids], 0).cummax(dim=1).values

    def is_medical(self, ids: Tensor, starts: Tensor) -> Tensor:
        """ids (B, T) -> (B, T) bool: the token is part of a medical word."""
        return torch.isin(word_numbers(ids, starts), self.medical) & ~self.special[ids]


def read_tokenizer(objective: nn.Module, tokenizer) -> None:
    """Show the tokenizer to every part of an objective that asks for it; call it once, before training."""
    for part in objective.modules():
        if hasattr(part, "read_tokenizer"):
            part.read_tokenizer(tokenizer)


def word_numbers(ids: Tensor, starts: Tensor) -> Tensor:
    """One number for each word, equal for equal words: sum_k (id_k + 1) base^(k + 1) over its pieces, modulo 2^64.

    ids, starts: (B, T) as in `Vocabulary.word_starts`. Returns (B, T) int64, the number of the word at each of its
    tokens. Two words that differ collide with a chance near 2^-60.
    """
    places = torch.arange(ids.shape[1], device=ids.device)
    powers = torch.full_like(places, _BASE).cumprod(dim=0)  # wraps around, as intended
    totals = torch.zeros_like(ids).scatter_add(1, starts, (ids + 1) * powers[places - starts])
    return totals.gather(1, starts)


def _facts(tokenizer) -> tuple[dict[str, int], Iterable[int], int | None]:
    """Piece -> id, the special ids and the id of [MASK], of the kit's tokenizer or of one from transformers."""
    if hasattr(tokenizer, "vocabulary"):
        return tokenizer.vocabulary, range(len(SPECIAL)), tokenizer.mask_id
    inner = tokenizer.tokenizer
    return inner.get_vocab(), inner.all_special_ids, inner.mask_token_id


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())
