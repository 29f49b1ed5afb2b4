"""Checks of the exercises of lesson 02."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .checking import Misconception, close, exercise, expect

VALUES = np.array([-1000.0, -160.0, -60.0, 40.0, 90.0, 240.0, 1000.0])


@exercise
def window(answer: Callable) -> None:
    """answer(values, centre, width) -> values in [0, 1]. Truth: linear interpolation between the two edges."""
    for centre, width in ((40.0, 400.0), (-600.0, 1500.0)):
        found = answer(VALUES.copy(), centre, width)
        expect(found is not None, "your function returns None: does it end with return?")
        found = np.asarray(found, dtype=float)
        expect(found.shape == VALUES.shape, f"return one number for each value: {VALUES.shape}, not {found.shape}")
        truth = np.interp(VALUES, [centre - width / 2, centre + width / 2], [0.0, 1.0])
        if close(found, truth):
            continue
        if close(np.clip(found, 0, 1), truth):
            raise Misconception("values outside the window must be cut to 0 and 1: clip them")
        if close(found, 1 - truth):
            raise Misconception("black and white are exchanged: high values should become 1")
        wide = np.interp(VALUES, [centre - width, centre + width], [0.0, 1.0])
        if close(found, wide):
            raise Misconception("the window is twice too wide: half the width lies on each side of the centre")
        edge = np.interp(VALUES, [centre, centre + width], [0.0, 1.0])
        if close(found, edge):
            raise Misconception("the centre is taken for the lower edge: the centre must become 0.5")
        wanted = f"{VALUES[3]:g} should become {truth[3]:.3f}"
        raise Misconception(f"for centre {centre:g} and width {width:g}, {wanted}, yours is {found[3]:.3f}")


@exercise
def fitted_box(answer: Callable) -> None:
    """answer(box, height, width, size) -> the box in the padded square. Truth: where the corners of a drawn box land."""
    for box, height, width, size in (((10, 20, 50, 120), 200, 100, 64), ((30, 5, 90, 45), 50, 120, 96)):
        found = answer(box, height, width, size)
        expect(found is not None and len(tuple(found)) == 4, "return four numbers (x0, y0, x1, y1)")
        found = np.array([float(value) for value in found])
        longer = max(height, width)
        scale, corners = size / longer, np.array(box, dtype=float)
        offset = np.array([(longer - width) / 2, (longer - height) / 2] * 2)
        # the padded canvas is a square of the longer side: shift the corners onto it first, then shrink it as a whole
        truth = (corners + offset) * scale
        if close(found, truth, tolerance=1e-3):
            continue
        if close(found, corners * scale, tolerance=1e-3):
            raise Misconception("the padding is missing: the shrunk picture is centred in the square, so boxes shift")
        if close(found, corners * np.array([size / width, size / height] * 2), tolerance=1e-3):
            raise Misconception("this stretches: both axes must be scaled by the same factor, size / the longer side")
        if close(found, corners * scale + 2 * offset * scale, tolerance=1e-3):
            raise Misconception("all the padding is on one side: half of it belongs on each")
        if close(found, corners * scale + offset, tolerance=1e-3):
            raise Misconception("the padding is in pixels of the original: it must be scaled too")
        swapped = corners * scale + offset[[1, 0, 1, 0]] * scale
        if close(found, swapped, tolerance=1e-3):
            raise Misconception("the padding went to the wrong axis: the shorter side is the one that is padded")
        wanted, got = truth.round(2).tolist(), found.round(2).tolist()
        raise Misconception(f"for {box} of a {height} x {width} picture the truth is {wanted}, yours is {got}")
