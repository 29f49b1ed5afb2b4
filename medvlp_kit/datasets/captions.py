"""Captions from labels: sets of labels or boxes become image-text pairs, so that every task that reads text runs on them.

A caption says only what the labels say: what is there, how often where objects were counted, and what is not. It is no
report; a model trained on captions learns the words of these templates and nothing of how physicians write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
LABELLED = ("{picture} of {things}.", "{picture} showing {things}.", "{things}, {picture}.")
COUNTED = ("{picture} with {things}.", "{things} on a {picture}.", "This {picture} shows {things}.")


def caption(present: Sequence[str], *, picture: str, key: str) -> str:
    """A sentence for labels that hold of the whole picture: 'Histology patch of lung adenocarcinoma.'

    picture: what kind of picture it is; key: chooses the wording, the same one for the same key.
    """
    return _sentence(LABELLED, picture, listed(present), key)


def count_caption(counts: Mapping[str, int], *, picture: str, key: str) -> str:
    """A sentence for counted objects, those that are absent included: 'Blood smear with two platelets and no ...'."""
    return _sentence(COUNTED, picture, listed([quantity(count, noun) for noun, count in counts.items()]), key)


def quantity(count: int, noun: str) -> str:
    """'one platelet', 'no platelets', '12 platelets': words up to ten, as in prose; regular plurals and -us."""
    number = NUMBERS[count] if count < len(NUMBERS) else str(count)
    plural = noun[:-2] + "i" if noun.endswith("us") else noun + "s"
    return f"{number} {noun if count == 1 else plural}"


def listed(things: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    *first, last = things
    return f"{', '.join(first)} and {last}" if first else last


def _sentence(templates: Sequence[str], picture: str, things: str, key: str) -> str:
    chosen = int.from_bytes(blake2b(key.encode(), digest_size=4).digest(), "big") % len(templates)
    sentence = templates[chosen].format(picture=picture, things=things)
    return sentence[0].upper() + sentence[1:]
