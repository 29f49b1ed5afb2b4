"""Subgroups: where a good average comes from. By finding rarity, side, severity and projection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ..errors import KitError
from ..study import PRESENT, UNCERTAIN, Collection
from .classification import _checked
from .multilabel import bootstrap_metric

RARITIES = ("rare", "middle", "common")


def rarity(labels, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The findings in three groups of nearly equal size by how often they are present: rarity -> names."""
    labels = np.asarray(labels, dtype=float)
    known = ~np.isnan(labels)
    share = (labels == 1).sum(0) / np.maximum(known.sum(0), 1)
    parts = np.array_split(np.argsort(share, kind="stable"), len(RARITIES))
    return {name: tuple(names[i] for i in part) for name, part in zip(RARITIES, parts) if len(part)}


def projections(collection: Collection) -> list[str] | None:
    """PA or AP of every study, where the collection knows it (phantoms do); else None."""
    parent, rows = collection, list(range(len(collection)))
    while hasattr(parent, "chosen"):  # a subset of a subset of ...
        rows, parent = [parent.chosen[i] for i in rows], parent.parent
    return [parent.scene(i).projection for i in rows] if hasattr(parent, "scene") else None


def attributes(collection: Collection, attribute: str) -> np.ndarray:
    """(N, F) strings: `side`, `zone` or `severity` of each finding that is present; "" where there is none.

    A finding that is stated with two values (a lesion on either side) is "several".
    """
    names = list(collection.label_names)
    table = np.full((len(collection), len(names)), "", dtype=object)
    for i in range(len(collection)):
        for finding in collection.findings(i):
            value = getattr(finding, attribute)
            if value is None or finding.status not in (PRESENT, UNCERTAIN) or finding.name not in names:
                continue
            place = i, names.index(finding.name)
            table[place] = value if table[place] in ("", value) else "several"
    return table


def subgroups(
    scores, labels, names: Sequence[str], *, studies: Mapping[str, Sequence[str]] | None = None,
    positives: Mapping[str, np.ndarray] | None = None, metric: str = "AUROC", thresholds=None, resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Macro-AUROC (or another metric) in every subgroup, with its interval: one row a group.

    Rarity is always there. studies: name -> a label for each study (N), such as {"projection": ["PA", "AP", ...]}: both
    classes are then cut to the group. positives: name -> (N, F) strings, such as {"side": attributes(c, "side")}: then
    only the positives are cut, and the negatives stay, because an absent finding has no side. A finding without both
    classes in a group is left out of it; `findings` says how many remained, `positives` on how many cases they rest.
    """
    scores, labels = _checked(scores, labels)
    if scores.ndim != 2 or scores.shape[1] != len(names):
        raise KitError(f"{len(names)} names for scores of shape {scores.shape}: give one name a column")
    rows = []

    def add(kind: str, group: str, of: np.ndarray, columns: Sequence[int]) -> None:
        of = of[:, list(columns)]
        if not ((of == 1).any(0) & (of == 0).any(0)).any():
            rows.append((kind, group, np.nan, np.nan, np.nan, 0, int((of == 1).sum())))
            return
        limits = thresholds if thresholds is None else np.asarray(thresholds)[list(columns)]
        found = bootstrap_metric(
            scores[:, list(columns)], of, metric=metric, thresholds=limits, resamples=resamples, seed=seed
        )
        used = ~np.isnan(found.value)
        macro = found.macro
        rows.append((
            kind, group, float(macro.value), float(macro.low), float(macro.high), int(used.sum()),
            int((of == 1)[:, used].sum()),
        ))  # fmt: skip

    every = range(len(names))
    add("all", "all", labels, every)
    for group, members in rarity(labels, names).items():
        add("rarity", group, labels, [list(names).index(name) for name in members])
    for kind, values in (studies or {}).items():
        values = np.asarray(values, dtype=object)
        if values.shape != (len(labels),):
            raise KitError(f"subgroup {kind!r}: give one label a study, {len(labels)} in all, not shape {values.shape}")
        for group in sorted(set(values)):
            add(kind, str(group), np.where((values == group)[:, None], labels, np.nan), every)
    for kind, values in (positives or {}).items():
        values = np.asarray(values, dtype=object)
        if values.shape != labels.shape:
            raise KitError(f"subgroup {kind!r}: give one label a study and finding, {labels.shape}, not {values.shape}")
        for group in sorted(set(values[labels == 1]) - {""}):
            add(kind, str(group), np.where((labels == 1) & (values != group), np.nan, labels), every)
    columns = ["kind", "group", metric, "low", "high", "findings", "positives"]
    return pd.DataFrame(rows, columns=columns).set_index(["kind", "group"])
