"""Report text: sections, sentences, laterality, and the tokenizer. Finding labels are in `labeller.py`.

Every name is reachable from here, so callers write `text.split_sections`, `text.label_findings` and so on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medvlp_kit.errors import KitError
from medvlp_kit.sections import sentences, split_sections, swap_sides
from medvlp_kit.study import Tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

__all__ = ["ReportTokenizer", "sentences", "split_sections", "swap_sides"]

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = range(5)


class ReportTokenizer:
    """WordPiece trained on the reports at hand: lower case, accents kept, every digit a token of its own.

    Ids: pad 0, unk 1, cls 2, sep 3, mask 4. Training on the same texts gives the same vocabulary in every process.
    """

    pad_id, unk_id, cls_id, sep_id, mask_id = PAD, UNK, CLS, SEP, MASK

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        tokenizer.no_padding()
        tokenizer.no_truncation()

    @classmethod
    def train(cls, texts: Iterable[str], *, vocabulary_size: int) -> ReportTokenizer:
        """Learn a vocabulary of at most `vocabulary_size` pieces from `texts` (or one piece a character, if more)."""
        from tokenizers.trainers import WordPieceTrainer

        texts = _strings(texts)
        if vocabulary_size <= len(SPECIAL):
            raise KitError(f"vocabulary_size {vocabulary_size} leaves no room for words: give more than {len(SPECIAL)}")
        draft = _blank({token: number for number, token in enumerate(SPECIAL)})
        seen = sorted(set("".join(draft.normalizer.normalize_str(text) for text in set(texts))) - set(" \t\n\r"))
        if not seen:
            raise KitError("no words to train a tokenizer on: every text is empty; check the report column")
        # The trainer numbers word-inner characters in hash order, which differs between processes and then decides
        # ties. Handing them over as special tokens fixes their numbers; the vocabulary is rebuilt without that mark.
        inner = [f"##{character}" for character in seen]
        trainer = WordPieceTrainer(
            vocab_size=vocabulary_size, special_tokens=[*SPECIAL, *inner], initial_alphabet=seen, show_progress=False
        )
        draft.train_from_iterator(texts, trainer)
        pieces = sorted(draft.get_vocab().items(), key=lambda item: item[1])
        return cls(_blank({piece: number for number, (piece, _) in enumerate(pieces)}))

    def __len__(self) -> int:
        return self.vocabulary_size

    @property
    def vocabulary_size(self) -> int:
        return self._tokenizer.get_vocab_size()

    @property
    def vocabulary(self) -> dict[str, int]:
        """Piece -> id."""
        return self._tokenizer.get_vocab()

    def pieces(self, text: str) -> list[str]:
        """The word pieces of a text, without special tokens."""
        return self._tokenizer.encode(text, add_special_tokens=False).tokens

    def encode(self, texts: Sequence[str], *, length: int) -> Tokens:
        """[CLS] text [SEP] for each text, cut to `length` (the [SEP] stays) and padded to the longest.

        Returns `Tokens` with ids (B, T) int64 and mask (B, T) bool, T at most `length`.
        """
        import torch

        if length < 3:
            raise KitError(f"text length {length} holds no word between [CLS] and [SEP]: give at least 3")
        rows = [found.ids for found in self._tokenizer.encode_batch(_strings(texts))]
        rows = [row if len(row) <= length else [*row[: length - 1], SEP] for row in rows]
        ids = torch.full((len(rows), max(map(len, rows), default=0)), PAD, dtype=torch.int64)  # (B, T)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return Tokens(ids, ids != PAD)

    def decode(self, ids) -> list[str] | str:
        """Text of one row of ids, or a list of texts for (B, T) ids; special tokens are dropped."""
        rows = ids.tolist() if hasattr(ids, "tolist") else ids
        if len(rows) and not isinstance(rows[0], int):
            return self._tokenizer.decode_batch(list(map(list, rows)))
        return self._tokenizer.decode(list(rows))

    def save(self, path: str | os.PathLike) -> Path:
        """Write JSON, all or nothing: a reader never sees half a file."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            part.write_text(self._tokenizer.to_str(pretty=True), encoding="utf-8")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> ReportTokenizer:
        """Read what `save` wrote. Raises `KitError` when the file is missing or is no such tokenizer."""
        from tokenizers import Tokenizer

        path = Path(path)
        if not path.is_file():
            raise KitError(f"no tokenizer at {path}: give the JSON file that ReportTokenizer.save wrote")
        try:
            content = path.read_text(encoding="utf-8")
            json.loads(content)
            tokenizer = Tokenizer.from_str(content)
        except Exception as problem:  # tokenizers raises bare Exception
            raise KitError(f"{path} is not a tokenizer ({problem}): train and save it again") from problem
        wrong = [token for number, token in enumerate(SPECIAL) if tokenizer.token_to_id(token) != number]
        if wrong:
            raise KitError(f"{path} has other ids for {', '.join(wrong)}: use one that ReportTokenizer.save wrote")
        return cls(tokenizer)

    def to_transformers(self) -> PreTrainedTokenizerFast:
        """The same tokenizer for transformers' own models and pipelines."""
        from transformers import PreTrainedTokenizerFast

        names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
        copy = type(self._tokenizer).from_str(self._tokenizer.to_str())
        return PreTrainedTokenizerFast(tokenizer_object=copy, **dict(zip(names, SPECIAL, strict=True)))


def _blank(vocabulary: dict[str, int]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    # NFC first: "é" written as one or as two characters must be one token, and accents tell Spanish words apart.
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.BertNormalizer(lowercase=True, strip_accents=False)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def _strings(texts: Iterable[str]) -> list[str]:
    """The texts as a list; one line of error for a missing report (NaN) or a single string given for a list."""
    if isinstance(texts, str):
        raise KitError("texts is one string: give a list of strings, [text]")
    texts = list(texts)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise KitError(f"text {number} is {text!r}, not a string: drop or fill missing reports first")
    return texts


def __getattr__(name: str):
    if name in ("label_findings", "normalise"):
        from medvlp_kit import labeller

        return getattr(labeller, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
