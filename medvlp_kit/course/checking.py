"""What every exercise check shares: run the learner's function and answer in one friendly line.

A check is a function that takes the learner's function and says what is wrong by raising `Misconception`; `exercise`
turns it into one that returns a `Verdict`. Checks go from fundamental to subtle, and compare with a truth that is
computed in another way than the obvious solution:

    @exercise
    def tokens_of_image(answer):
        expect_close(answer(64, 8), 64, "an image of 64 pixels in patches of 8 has 8 x 8 patches")
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any


@dataclass(frozen=True, repr=False)
class Verdict:
    """The outcome of one check: whether the answer is right, and one line that says why not."""

    passed: bool
    message: str

    def __str__(self) -> str:
        return self.message

    __repr__ = __str__

    def _repr_html_(self) -> str:
        mark, colour = ("✓", "#009E73") if self.passed else ("→", "#0072B2")
        return f'<p role="status"><b style="color:{colour}">{mark}</b> {html.escape(self.message)}</p>'


class Misconception(Exception):
    """The answer is wrong; the message names the probable mistake."""


def exercise(check: Callable[..., None]) -> Callable[..., Verdict]:
    """Decorator: `check(answer)` returns a `Verdict`, whatever the learner's function does."""

    @wraps(check)
    def run(answer: Callable, *arguments: Any, **options: Any) -> Verdict:
        name = getattr(answer, "__name__", check.__name__)
        try:
            check(answer, *arguments, **options)
        except NotImplementedError:
            return Verdict(False, f"{name}: not written yet.")
        except Misconception as found:
            return Verdict(False, f"{name}: {' '.join(str(found).split())}")
        except Exception as error:  # the learner's own: any kind, and never a traceback through our files
            reason = " ".join(str(error).split())[:200]
            return Verdict(False, f"{name}: your function stopped with {type(error).__name__}: {reason}")
        return Verdict(True, f"{name}: right.")

    return run


def expect(truth: bool, otherwise: str) -> None:
    """Raise `Misconception(otherwise)` unless `truth`."""
    if not truth:
        raise Misconception(otherwise)


def expect_shape(found: Any, shape: Sequence[int], *, name: str = "the result") -> None:
    """Raise `Misconception` unless `found` is a tensor or array of this shape, () for a single number."""
    if found is None:
        raise Misconception(f"{name} is None: does your function end with return?")
    got = tuple(getattr(found, "shape", ())) if not isinstance(found, (list, tuple)) else (len(found), "...")
    if got != tuple(shape):
        raise Misconception(f"{name} should have shape {tuple(shape)}, yours has {got}")


def close(found: Any, expected: Any, *, tolerance: float = 1e-4) -> bool:
    """Whether two tensors, arrays or numbers agree in shape and, up to `tolerance`, in value; NaN agrees with NaN."""
    import numpy as np

    def plain(value: Any):
        return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value, dtype=float)

    found, expected = plain(found), plain(expected)
    if found.shape != expected.shape:
        return False
    return bool(np.allclose(found, expected, atol=tolerance, rtol=tolerance, equal_nan=True))


def expect_close(found: Any, expected: Any, otherwise: str, *, tolerance: float = 1e-4) -> None:
    """Raise `Misconception(otherwise)` unless the two agree."""
    expect(close(found, expected, tolerance=tolerance), otherwise)


def expect_not(found: Any, mistakes: dict[str, Any], *, tolerance: float = 1e-4) -> None:
    """Raise `Misconception` with the sentence whose value the answer equals: {sentence: what that mistake gives}."""
    for sentence, value in mistakes.items():
        if close(found, value, tolerance=tolerance):
            raise Misconception(sentence)
