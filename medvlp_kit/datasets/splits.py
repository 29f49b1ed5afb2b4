"""Splits that cannot leak: a patient, and a report text, is on one side only.

Rows that share a patient or a normalised text form a group (connected components, so that sharing is passed on), and
groups are dealt to the splits in the order of a hash. The order of the rows therefore does not matter.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Hashable, Sequence
from hashlib import blake2b

import numpy as np

from ..errors import KitError
from ..study import SPLITS

ALIASES = {"training": "train", "val": "validation", "valid": "validation", "dev": "validation", "testing": "test"}


def normalise(text: str) -> str:
    """The text for comparison: no case, accents kept, and nothing but words and numbers, each one blank apart."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def link(*columns: Sequence[Hashable]) -> list[int]:
    """Group numbers of rows, equal where rows share a value in any column, directly or through other rows.

    "" and None link nothing. Groups are numbered by their first row.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = len(columns[0])
    if any(len(column) != rows for column in columns):
        raise KitError(f"columns of different length: {[len(column) for column in columns]}; give one value a row")
    first: dict[tuple[int, Hashable], int] = {}
    earlier = []
    for number, column in enumerate(columns):
        for row, value in enumerate(column):
            if value is not None and value != "":
                earlier.append((row, first.setdefault((number, value), row)))
    pairs = np.array(earlier, dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(rows, rows))
    _, found = connected_components(graph, directed=False)
    order: dict[int, int] = {}
    return [order.setdefault(int(group), len(order)) for group in found]


def split_by_patient(
    patients: Sequence[str],
    texts: Sequence[str] | None = None,
    *,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> list[str]:
    """One of train, validation, test a row.

    patients: one identifier a row; "" is a patient of its own. texts: reports, compared after `normalise`; empty ones
    link nothing. A group goes to the split in which the middle of its share of rows falls, so each boundary is off by
    at most half a group. Where there are groups enough, no split with a positive fraction stays empty.
    """
    if len(fractions) != len(SPLITS) or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise KitError(f"fractions {fractions} are not three shares that sum to 1, as in (0.8, 0.1, 0.1)")
    patients = [str(patient) for patient in patients]
    texts = [""] * len(patients) if texts is None else [normalise(text) for text in texts]
    if not patients:
        return []
    members = defaultdict(list)
    for row, group in enumerate(link(patients, texts)):
        members[group].append(row)

    def rank(group: int) -> str:
        # The smallest hash among the group's rows: the same whatever their order.
        return min(_hash(seed, patients[row], texts[row]) for row in members[group])

    dealt: dict[str, list[int]] = {name: [] for name in SPLITS}
    boundaries, done = np.cumsum(fractions) / sum(fractions), 0
    for group in sorted(members, key=rank):
        middle = (done + len(members[group]) / 2) / len(patients)
        dealt[SPLITS[min(int(np.searchsorted(boundaries, middle, side="right")), len(SPLITS) - 1)]].append(group)
        done += len(members[group])
    _fill_empty(dealt, fractions)
    answer = [""] * len(patients)
    for name, groups in dealt.items():
        for group in groups:
            for row in members[group]:
                answer[row] = name
    return answer


def _fill_empty(dealt: dict[str, list[int]], fractions: Sequence[float]) -> None:
    """A split that should have something takes the last group of the split that has most, if that has two."""
    for name, fraction in zip(SPLITS, fractions, strict=True):
        richest = max(dealt, key=lambda other: len(dealt[other]))
        if fraction > 0 and not dealt[name] and len(dealt[richest]) > 1:
            dealt[name].append(dealt[richest].pop())


def _hash(seed: int, *parts: str) -> str:
    return blake2b("\x1f".join((str(seed), *parts)).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def split_name(name: str) -> str | None:
    """The kit's name of a split, from the usual ones (val, dev, ...); None if it is none of them."""
    name = name.strip().lower()
    name = ALIASES.get(name, name)
    return name if name in SPLITS else None


def crossing(keys: Sequence[Hashable], splits: Sequence[str | None]) -> dict[Hashable, set[str]]:
    """The keys that occur in more than one split, with those splits; "" and None are not keys."""
    seen: dict[Hashable, set[str]] = defaultdict(set)
    for key, split in zip(keys, splits, strict=True):
        if key is not None and key != "" and split:
            seen[key].add(split)
    return {key: found for key, found in seen.items() if len(found) > 1}
