"""The checks of lesson 02 accept the right answer, agree with the library and name the mistake in wrong ones."""

import numpy as np
import pytest
import torch

from medvlp_kit.course import checks_02 as checks
from medvlp_kit.datasets.image_reading import fit_boxes


def right_window(values, centre, width):
    return np.clip((values - centre) / width + 0.5, 0, 1)


WRONG_WINDOWS = {
    "clip": lambda v, c, w: (v - c) / w + 0.5,
    "exchanged": lambda v, c, w: 1 - right_window(v, c, w),
    "twice too wide": lambda v, c, w: right_window(v, c, 2 * w),
    "lower edge": lambda v, c, w: np.clip((v - c) / w, 0, 1),
    "one number for each": lambda v, c, w: 0.5,
    "None": lambda v, c, w: None,
}


def right_box(box, height, width, size):
    return fit_boxes(torch.tensor([box], dtype=torch.float32), (height, width), size)[0].tolist()


def shifted(box, height, width, size, x, y):
    scale = size / max(height, width)
    return [box[0] * scale + x, box[1] * scale + y, box[2] * scale + x, box[3] * scale + y]


def padding(height, width, size):
    scale = size / max(height, width)
    return (size - width * scale) / 2, (size - height * scale) / 2


WRONG_BOXES = {
    "padding is missing": lambda b, h, w, s: shifted(b, h, w, s, 0, 0),
    "stretches": lambda b, h, w, s: [b[0] * s / w, b[1] * s / h, b[2] * s / w, b[3] * s / h],
    "one side": lambda b, h, w, s: shifted(b, h, w, s, *(2 * p for p in padding(h, w, s))),
    "must be scaled too": lambda b, h, w, s: shifted(b, h, w, s, (max(h, w) - w) / 2, (max(h, w) - h) / 2),
    "wrong axis": lambda b, h, w, s: shifted(b, h, w, s, *reversed(padding(h, w, s))),
    "four numbers": lambda b, h, w, s: b[:2],
}


def stub(*_):
    raise NotImplementedError


@pytest.mark.parametrize("check, right", [(checks.window, right_window), (checks.fitted_box, right_box)])
def test_the_right_answer_passes_and_a_stub_is_not_written_yet(check, right):
    assert check(right).passed, check(right).message
    assert not check(stub).passed and "not written yet" in check(stub).message


@pytest.mark.parametrize("words", WRONG_WINDOWS)
def test_a_wrong_window_is_named(words):
    verdict = checks.window(WRONG_WINDOWS[words])
    assert not verdict.passed and words in verdict.message


@pytest.mark.parametrize("words", WRONG_BOXES)
def test_a_wrong_box_is_named(words):
    verdict = checks.fitted_box(WRONG_BOXES[words])
    assert not verdict.passed and words in verdict.message
