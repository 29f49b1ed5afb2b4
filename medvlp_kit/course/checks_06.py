"""Checks of lesson 06, text encoders."""

from __future__ import annotations

from .checking import exercise, expect, expect_close, expect_not, expect_shape


@exercise
def longest_match(answer):
    """longest_match(word, vocabulary) -> the word's pieces, or ["[UNK]"] when no chain of pieces spells it."""
    from tokenizers.models import WordPiece

    letters = [mark + letter for letter in "abdefhimnoprstux" for mark in ("", "##")]
    pieces = ["[UNK]", *letters, "pneumo", "##tho", "##thorax", "thorax", "##ax", "no", "##t", "not", "e", "eff", "##fusion"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    model = WordPiece(vocabulary, unk_token="[UNK]")

    def truth(word: str) -> list[str]:
        return [token.value for token in model.tokenize(word)]

    found = answer("pneumothorax", dict(vocabulary))
    expect(found is not None, "your function returns None: does it end with return?")
    expect(isinstance(found, (list, tuple)), f"return the pieces as a list, not a {type(found).__name__}")
    found = list(found)
    expect(found != ["pneumo", "thorax"], "a piece that does not begin the word carries ##: look up '##thorax'")
    expect(
        found != list("pneumothorax") and found != ["p", *("##" + letter for letter in "neumothorax")],
        "you took the shortest piece each time: begin with the longest and shorten it",
    )
    expect(found[:2] != ["pneumo", "##tho"], "you stopped at a piece that can be longer: '##thorax' beats '##tho'")
    expect(
        found == truth("pneumothorax"),
        f"'pneumothorax' is {truth('pneumothorax')} in this vocabulary, yours is {found}",
    )
    found = list(answer("not", dict(vocabulary)))
    expect(found == ["not"], f"'not' is in the vocabulary whole: try the whole word first, yours is {found}")
    found = list(answer("effz", dict(vocabulary)))
    expect(
        found not in (["eff"], []),
        "'effz' ends in a letter that no piece spells, and you dropped it: the word must not change silently",
    )
    expect(
        found != ["eff", "[UNK]"],
        "one unknown letter makes the whole word unknown: return only ['[UNK]'], as WordPiece does",
    )
    expect(found == ["[UNK]"], f"'effz' cannot be spelt: return ['[UNK]'], yours is {found}")
    for word in ("pneumo", "noax", "thoraxeff", "effusion", "zeff", "nothorax"):
        found = list(answer(word, dict(vocabulary)))
        expect(found == truth(word), f"{word!r} is {truth(word)} in this vocabulary, yours is {found}")


@exercise
def masked_mean(answer):
    """masked_mean(tokens (B, T, D), mask (B, T) bool) -> (B, D): the mean over real tokens, zeros where there is none."""
    import torch

    generator = torch.Generator().manual_seed(6)
    tokens = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[True] * 5, [True, True, True, False, False], [True, False, False, False, False]])
    found = answer(tokens, mask)
    expect_shape(found, (3, 4), name="the result (one vector a text)")
    truth = torch.stack([row[real].mean(dim=0) for row, real in zip(tokens, mask)])
    kept = tokens * mask[..., None]
    expect_not(
        found,
        {
            "padding takes part in your mean: the mask is not used": tokens.mean(dim=1),
            "you divide by T: a short text in a long batch would get a short vector; divide by its own count": kept.mean(
                dim=1
            ),
            "this is the sum: divide by the number of real tokens": kept.sum(dim=1),
            "you average over all texts' tokens alike: count real tokens text by text": kept.sum(dim=1) / mask.sum(),
            "this is the mean of the padded tokens: True marks the real ones": torch.stack(
                [row[~real].mean(dim=0) for row, real in zip(tokens, mask)]
            ),
        },
    )
    expect_close(found, truth, "each row must be the mean of that text's real tokens, and of nothing else")
    # What stands at padded places is arbitrary, also NaN (0 * NaN is NaN).
    spoilt = tokens.masked_fill(~mask[..., None], float("nan"))
    expect(
        not bool(answer(spoilt, mask).isnan().any()),
        "a NaN at a padded place reaches your result: 0 * NaN is NaN, so fill padded places instead of multiplying",
    )
    empty = answer(tokens, torch.zeros_like(mask))
    expect(
        not bool(empty.isnan().any()),
        "a text without a real token gives NaN (0 / 0): clamp the count at 1, so that it gives zeros",
    )
    expect_close(empty, torch.zeros(3, 4), "a text without a real token gives zeros")


@exercise
def words_from_pieces(answer):
    """words_from_pieces(tokens (T, D), word_ids (T,)) -> (W, D): the mean of each word's pieces; -1 is no word."""
    import torch

    generator = torch.Generator().manual_seed(66)
    tokens = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    word_ids = torch.tensor([-1, 0, 0, 0, 1, 2, 2, -1])
    found = answer(tokens, word_ids)
    rows = [[1, 2, 3], [4], [5, 6]]
    if hasattr(found, "shape") and found.shape == (4, 3):
        expect(False, "you made one word too many: tokens with -1 ([CLS], [SEP], padding) belong to no word")
    expect_shape(found, (3, 3), name="the result (one vector a word)")

    def gathered(rows, how):
        return torch.stack([how(tokens[row]) for row in rows])

    truth = gathered(rows, lambda pieces: pieces.mean(dim=0))
    wrapped = [[1, 2, 3], [4], [0, 5, 6, 7]]
    expect_not(
        found,
        {
            "this is the sum: a word of three pieces would be three times as long as a word of one (GLoRIA sums, "
            "here the mean is asked)": gathered(rows, lambda pieces: pieces.sum(dim=0)),
            "you keep the first piece of each word and drop the others": gathered(rows, lambda pieces: pieces[0]),
            "you keep the last piece of each word: later pieces overwrite earlier ones": gathered(
                rows, lambda pieces: pieces[-1]
            ),
            "you take the largest number of each column: the mean is asked": gathered(rows, lambda pieces: pieces.amax(dim=0)),
            "[CLS] and [SEP] were mixed into the last word: index -1 counts from the end": gathered(
                wrapped, lambda pieces: pieces.mean(dim=0)
            ),
            "[CLS] and [SEP] were added to the last word: index -1 counts from the end": gathered(
                wrapped, lambda pieces: pieces.sum(dim=0)
            ),
        },
    )
    expect_close(found, truth, "row w must be the mean of the tokens whose word_ids is w")


@exercise
def sentences_lost(answer):
    """sentences_lost(counts, length) -> how many sentences of one text are not read to their end."""
    counts = [6, 5, 8, 4]
    found = answer(list(counts), 16)
    expect(found is not None, "your function returns None: does it end with return?")
    # The sentences end at piece 6, 11, 19 and 23. Of 21 tokens, two are [CLS] and [SEP]: room for 19 pieces.
    cases = {3: 4, 8: 3, 11: 3, 12: 3, 13: 2, 16: 2, 19: 2, 20: 2, 21: 1, 24: 1, 25: 0, 77: 0}
    answers = {length: answer(list(counts), length) for length in cases}
    mistakes = {
        "you forgot [CLS] and [SEP]: of `length` tokens, two are not pieces": _lost(counts, special=0),
        "you counted one special token: [CLS] in front and [SEP] at the end are two": _lost(counts, special=1),
        "you counted only sentences that are lost from their first word on: one that is cut in its middle is lost too": _lost(
            counts, by="start"
        ),
        "you compared each sentence by itself with the limit: the sentences before it use up the room": _alone(counts),
        "you counted the sentences that are read; the lost ones are asked": {
            length: len(counts) - lost for length, lost in cases.items()
        },
        "a sentence that ends exactly at the last place is read whole: compare with >, not >=": _lost(counts, by="edge"),
        "you packed short sentences into the room that was left: truncation cuts in reading order": _packed(counts),
    }
    for sentence, wrong in mistakes.items():
        expect(any(answers[length] != wrong[length] for length in cases), sentence)
    for length, truth in cases.items():
        expect_close(
            answers[length],
            truth,
            f"sentences of {counts} pieces at length {length}: {truth} are not read to their end, you say {answers[length]}",
        )
    expect_close(answer([], 16), 0, "a text without sentences loses none")


LENGTHS = (3, 8, 11, 12, 13, 16, 19, 20, 21, 24, 25, 77)


def _lost(counts: list[int], *, special: int = 2, by: str = "end") -> dict[int, int]:
    """Lost sentences at each length under a mistaken rule."""
    found = {}
    for length in LENGTHS:
        room, end, lost = length - special, 0, 0
        for count in counts:
            start, end = end, end + count
            lost += {"end": end > room, "start": start >= room, "edge": end >= room}[by]
        found[length] = lost
    return found


def _alone(counts: list[int]) -> dict[int, int]:
    return {length: sum(count > length - 2 for count in counts) for length in LENGTHS}


def _packed(counts: list[int]) -> dict[int, int]:
    found = {}
    for length in LENGTHS:
        room, lost = length - 2, 0
        for count in counts:
            fits = count <= room
            room, lost = room - count * fits, lost + (not fits)
        found[length] = lost
    return found
