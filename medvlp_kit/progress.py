"""One tidy progress line: tqdm in a terminal, a plain HTML bar in a notebook that stays legible when saved."""

from __future__ import annotations

import sys
import time
from html import escape


def in_notebook() -> bool:
    """Whether a Jupyter kernel shows our output."""
    if "ipykernel" not in sys.modules:
        return False
    from IPython import get_ipython

    return get_ipython() is not None and hasattr(get_ipython(), "kernel")


class Progress:
    """`with Progress(total, "pretraining") as bar: bar.update(step, "loss 1.2")`. Redraws at most four times a second."""

    def __init__(self, total: int, title: str, *, shown: bool = True):
        self.total, self.title, self.shown = total, title, shown
        self._handle = self._bar = None
        self._step, self._text, self._drawn, self._start = 0, "", 0.0, time.perf_counter()

    def __enter__(self) -> Progress:
        if self.shown and in_notebook():
            from IPython.display import HTML, display

            self._handle = display(HTML(self._html()), display_id=True)
        elif self.shown:
            from tqdm import tqdm

            self._bar = tqdm(total=self.total, desc=self.title, file=sys.stderr, dynamic_ncols=True, leave=True)
        return self

    def update(self, step: int, text: str) -> None:
        self._step, self._text = step, text
        if time.perf_counter() - self._drawn >= 0.25:
            self._draw()

    def _draw(self) -> None:
        self._drawn = time.perf_counter()
        if self._handle is not None:
            from IPython.display import HTML

            self._handle.update(HTML(self._html()))
        elif self._bar is not None:
            self._bar.n = self._step
            self._bar.set_postfix_str(self._text)

    def _html(self) -> str:
        seconds = time.perf_counter() - self._start
        line = f"{self.title}: step {self._step} of {self.total}, {seconds:.0f} s"
        text = escape(f"{line}; {self._text}" if self._text else line)
        return (
            f'<div role="status"><progress value="{self._step}" max="{self.total}" style="width:20em" '
            f'aria-label="{escape(self.title)}"></progress> <span>{text}</span></div>'
        )

    def __exit__(self, *error) -> None:
        self._draw()
        if self._bar is not None:
            self._bar.close()
