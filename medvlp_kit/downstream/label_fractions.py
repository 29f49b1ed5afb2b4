"""Label fractions: 1, 10 and 100 % of the labelled studies, each subset inside the next.

Nested, because otherwise a step from 1 % to 10 % changes two things at once: how many studies, and which.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from ..errors import KitError

FRACTIONS = (0.01, 0.1, 1.0)


def nested_subsets(
    count: int, *, fractions: Sequence[float] = FRACTIONS, seed: int = 0, patients: Sequence[Hashable] | None = None
) -> dict[float, np.ndarray]:
    """fraction -> sorted indices of that share of `count` studies; a smaller subset lies within every larger one.

    patients: one name a study; whole patients are then taken until the share is reached, so that no patient is half in
    (a subset may be larger than its share by part of a patient). One seed gives one order; another gives another.
    """
    wanted = sorted(set(fractions))
    if not wanted or not all(0 < fraction <= 1 for fraction in wanted):
        raise KitError(f"label fractions {tuple(fractions)}: give numbers above 0 and at most 1, such as 0.01, 0.1, 1")
    if round(wanted[0] * count) < 1:
        raise KitError(
            f"{100 * wanted[0]:g} % of {count} studies is less than one study: give a larger fraction or more studies"
        )
    generator = np.random.default_rng(seed)
    if patients is None:
        order = generator.permutation(count)
        ends = {fraction: round(fraction * count) for fraction in wanted}
    else:
        if len(patients) != count:
            raise KitError(f"{len(patients)} patients for {count} studies: give one patient a study")
        _, place = np.unique(np.array([str(patient) for patient in patients]), return_inverse=True)
        turn = generator.permutation(place.max() + 1)  # when each patient's turn comes
        order = np.argsort(turn[place], kind="stable")
        last = np.flatnonzero(np.append(np.diff(turn[place][order]) != 0, True)) + 1  # studies up to each patient's end
        ends = {fraction: int(last[np.searchsorted(last, round(fraction * count))]) for fraction in wanted}
    return {fraction: np.sort(order[:end]) for fraction, end in ends.items()}
