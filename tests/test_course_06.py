"""The checks of lesson 06: the reference passes, a stub is told so, and each misconception gets its own sentence."""

from __future__ import annotations

import pytest

from medvlp_kit.course import checks

lesson = checks.lesson_06


def stub(*arguments, **options):
    raise NotImplementedError


def longest_match(word, vocabulary, *, mark="##", shortest=False, on_unknown="all", lookup=lambda piece: piece):
    pieces, start = [], 0
    while start < len(word):
        ends = range(start + 1, len(word) + 1) if shortest else range(len(word), start, -1)
        for end in ends:
            piece = (mark if start else "") + word[start:end]
            if lookup(piece) in vocabulary:
                break
        else:
            return {"all": ["[UNK]"], "rest": [*pieces, "[UNK]"], "drop": pieces}[on_unknown]
        pieces.append(piece)
        start = end
    return pieces


def masked_mean(tokens, mask):
    filled = tokens.masked_fill(~mask[..., None], 0.0)
    return filled.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)


def words_from_pieces(tokens, word_ids):
    import torch

    return torch.stack([tokens[word_ids == word].mean(dim=0) for word in range(int(word_ids.max()) + 1)])


def sentences_lost(counts, length):
    end, lost = 0, 0
    for count in counts:
        end += count
        lost += end > length - 2
    return lost


@pytest.mark.parametrize(
    "reference", [longest_match, masked_mean, words_from_pieces, sentences_lost], ids=lambda f: f.__name__
)
def test_reference_and_stub(reference):
    check = getattr(lesson, reference.__name__)
    assert check(reference).passed, check(reference)
    assert "not written yet" in check(stub).message


def stops_at_first_growth(word, vocabulary):
    """Grows a piece letter by letter and stops at the last one that was in the vocabulary without a gap."""
    if word == "pneumothorax":
        return ["pneumo", "##tho", *(f"##{letter}" for letter in "rax")]
    return longest_match(word, vocabulary)


def never_whole(word, vocabulary):
    if word == "not":
        return ["no", "##t"]
    return longest_match(word, vocabulary)


def per_word(pick):
    import torch

    def found(tokens, word_ids):
        return torch.stack([pick(tokens[word_ids == word]) for word in range(int(word_ids.max()) + 1)])

    return found


def one_word_more(tokens, word_ids):
    return per_word(lambda pieces: pieces.mean(dim=0))(tokens, word_ids + 1)


def wrapped(tokens, word_ids, *, mean):
    import torch

    words, count = torch.zeros(3, tokens.shape[1], dtype=tokens.dtype), torch.zeros(3, 1, dtype=tokens.dtype)
    for token, word in zip(tokens, word_ids.tolist()):
        words[word] += token  # -1 is the last row
        count[word] += 1
    return words / count if mean else words


def lost_by(rule):
    def found(counts, length):
        end, lost = 0, 0
        for count in counts:
            start, end = end, end + count
            lost += rule(start, end, count, length)
        return lost

    return found


def packed(counts, length):
    room, lost = length - 2, 0
    for count in counts:
        if count <= room:
            room -= count
        else:
            lost += 1
    return lost


def zero_times_nan(tokens, mask):
    return (tokens * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)


def nothing_by_nothing(tokens, mask):
    return tokens.masked_fill(~mask[..., None], 0.0).sum(dim=1) / mask.sum(dim=1, keepdim=True)


WRONG = [
    ("longest_match", lambda w, v: longest_match(w, v, mark=""), "carries ##"),
    ("longest_match", lambda w, v: longest_match(w, v, shortest=True), "shortest piece"),
    ("longest_match", lambda w, v: list(w), "shortest piece"),
    ("longest_match", stops_at_first_growth, "can be longer"),
    ("longest_match", never_whole, "whole word first"),
    ("longest_match", lambda w, v: longest_match(w, v, on_unknown="rest"), "whole word unknown"),
    ("longest_match", lambda w, v: longest_match(w, v, on_unknown="drop"), "dropped it"),
    ("longest_match", lambda w, v: " ".join(longest_match(w, v)), "as a list"),
    ("longest_match", lambda w, v: None, "returns None"),
    ("longest_match", lambda w, v: longest_match(w, v)[:3], "in this vocabulary"),
    ("masked_mean", lambda t, m: t.mean(dim=1), "mask is not used"),
    ("masked_mean", lambda t, m: (t * m[..., None]).mean(dim=1), "divide by T"),
    ("masked_mean", lambda t, m: (t * m[..., None]).sum(dim=1), "this is the sum"),
    ("masked_mean", lambda t, m: (t * m[..., None]).sum(dim=1) / m.sum(), "text by text"),
    ("masked_mean", lambda t, m: t.mean(dim=(1, 2)), "should have shape"),
    ("masked_mean", lambda t, m: t[:, 0], "of nothing else"),
    ("masked_mean", zero_times_nan, "0 * NaN"),
    ("masked_mean", nothing_by_nothing, "0 / 0"),
    ("words_from_pieces", per_word(lambda pieces: pieces.sum(dim=0)), "three times as long"),
    ("words_from_pieces", per_word(lambda pieces: pieces[0]), "first piece"),
    ("words_from_pieces", per_word(lambda pieces: pieces[-1]), "last piece"),
    ("words_from_pieces", per_word(lambda pieces: pieces.amax(dim=0)), "largest number"),
    ("words_from_pieces", one_word_more, "one word too many"),
    ("words_from_pieces", lambda t, w: wrapped(t, w, mean=True), "mixed into the last word"),
    ("words_from_pieces", lambda t, w: wrapped(t, w, mean=False), "added to the last word"),
    ("words_from_pieces", lambda t, w: t, "should have shape"),
    ("sentences_lost", lost_by(lambda start, end, count, length: end > length), "forgot [CLS] and [SEP]"),
    ("sentences_lost", lost_by(lambda start, end, count, length: end > length - 1), "one special token"),
    ("sentences_lost", lost_by(lambda start, end, count, length: start >= length - 2), "from their first word on"),
    ("sentences_lost", lost_by(lambda start, end, count, length: count > length - 2), "by itself"),
    ("sentences_lost", lambda c, n: len(c) - sentences_lost(c, n), "sentences that are read"),
    ("sentences_lost", lost_by(lambda start, end, count, length: end >= length - 2), "with >, not >="),
    ("sentences_lost", packed, "reading order"),
    ("sentences_lost", lambda c, n: None, "returns None"),
    ("sentences_lost", lambda c, n: sentences_lost(c, n) if c else 1, "loses none"),
]


@pytest.mark.parametrize("name, wrong, message", WRONG, ids=[f"{name}: {message}" for name, _, message in WRONG])
def test_misconceptions(name, wrong, message):
    verdict = getattr(lesson, name)(wrong)
    assert not verdict.passed
    assert message in verdict.message
