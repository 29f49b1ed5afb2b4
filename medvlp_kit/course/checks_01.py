"""Checks of the exercises of lesson 01."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .checking import Misconception, exercise, expect


@exercise
def mirror_box(answer: Callable) -> None:
    """answer((x0, y0, x1, y1), width) -> the half-open box after a left-right flip. Truth: flip a drawn mask."""
    for box, width in (((2, 1, 5, 4), 10), ((0, 0, 1, 3), 7), ((3, 2, 8, 6), 8)):
        mask = np.zeros((8, width), dtype=bool)
        mask[box[1] : box[3], box[0] : box[2]] = True
        rows, columns = np.nonzero(mask[:, ::-1])
        truth = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        found = answer(box, width)
        expect(found is not None and len(tuple(found)) == 4, "return four numbers (x0, y0, x1, y1)")
        found = tuple(float(value) for value in found)
        x0, y0, x1, y1 = box
        if found == tuple(map(float, truth)):
            continue
        if found == tuple(map(float, box)):
            raise Misconception("the box is unchanged: a flip moves what was left of the middle to the right of it")
        if found == (width - x0, y0, width - x1, y1):
            raise Misconception("x0 is now greater than x1: after a flip the old right edge is the new left edge")
        if found in ((width - 1 - x1, y0, width - 1 - x0, y1), (width - x1 - 1, y0, width - x0 - 1, y1)):
            raise Misconception("one column off: boxes are half-open, so edges mirror as width - x, not width - 1 - x")
        if found[1::2] != (float(y0), float(y1)):
            raise Misconception("rows have moved: a left-right flip leaves y as it is")
        raise Misconception(f"for {box} in a picture {width} wide the truth is {tuple(int(v) for v in truth)}, yours is {found}")


DENIALS = (
    ("No pneumothorax.", True, "the plainest denial, 'No pneumothorax.', is not recognised"),
    ("There is a left effusion.", False, "an affirmation is taken for a denial"),
    ("Lungs are clear without consolidation.", True, "'without' denies too"),
    ("There is no evidence of edema.", True, "the word 'no' may stand in the middle of the sentence"),
    ("No change in the right effusion.", False, "'no change in the effusion' affirms the effusion: 'no' denies the change"),
    ("The nodule is known from before.", False, "letters are not words: 'nodule' and 'known' only contain 'no'"),
    ("NO FRACTURE.", True, "reports are often in capitals"),
)


@exercise
def is_denial(answer: Callable) -> None:
    """answer(sentence) -> whether it denies a finding it names; from the plainest case to the subtle ones."""
    for sentence, truth, mistake in DENIALS:
        found = answer(sentence)
        expect(found is not None, "your function returns None: does it end with return?")
        if bool(found) != truth:
            raise Misconception(f"{mistake} ({sentence!r})")
