"""Errors a user can act on: one line that says what is wrong, where, and how to mend it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class KitError(ValueError):
    """A mistake in what the kit was given. The message is one line: what, where, how to mend it."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def unknown(kind: str, name: object, choices: Iterable[str]) -> KitError:
    """The error for a name that is not among `choices`, with the nearest one suggested."""
    choices = sorted(map(str, choices))
    near = get_close_matches(str(name), choices, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return KitError(f"unknown {kind} {name!r}: {hint}choose one of {', '.join(choices)}")
