"""The frame of exercise checks: one line whatever the learner's function does."""

from __future__ import annotations

import pytest
import torch

from medvlp_kit.course import checking
from medvlp_kit.course.checking import Misconception


@checking.exercise
def double(answer):
    """Twice the number."""
    found = answer(torch.tensor([1.0, 3.0]))
    checking.expect_shape(found, (2,))
    checking.expect_not(found, {"you squared instead of doubling": torch.tensor([1.0, 9.0])})
    checking.expect_close(found, torch.tensor([2.0, 6.0]), "that is not twice the number")


def stub(x):
    raise NotImplementedError


def stops(x):
    return x @ torch.zeros(5)


@pytest.mark.parametrize(
    "answer, passed, message",
    [
        (stub, False, "not written yet"),
        (stops, False, "stopped with RuntimeError"),
        (lambda x: None, False, "does your function end with return"),
        (lambda x: x.sum(), False, "should have shape (2,)"),
        (lambda x: [2.0, 6.0], False, "should have shape (2,)"),
        (lambda x: x**2, False, "squared"),
        (lambda x: x + 1, False, "not twice"),
        (lambda x: x * float("nan"), False, "not twice"),
        (lambda x: x * 2, True, "right"),
        (lambda x: (x * 2).requires_grad_(), True, "right"),
    ],
)
def test_verdicts(answer, passed, message):
    verdict = double(answer)
    assert verdict.passed is passed
    assert message in verdict.message
    assert "\n" not in str(verdict)
    assert message.split()[0] in verdict._repr_html_()


def test_the_verdict_names_the_learners_function_and_escapes_what_it_says():
    def wild(x):
        raise ValueError("<b>two\nlines</b>")

    verdict = double(wild)
    assert verdict.message.startswith("wild: ")
    assert "two lines" in verdict.message
    assert "<b>two" not in verdict._repr_html_()


def test_close_needs_equal_shapes():
    assert checking.close(1.0, torch.tensor(1.0))
    assert not checking.close(torch.ones(2), torch.ones(2, 1))
    assert not checking.close(torch.ones(2), 1.0)


def test_expect():
    checking.expect(True, "fine")
    with pytest.raises(Misconception, match="because"):
        checking.expect(False, "because")


def test_no_checks_of_an_unknown_lesson():
    from medvlp_kit.course import checks

    with pytest.raises(AttributeError):
        checks.lesson_99  # noqa: B018
