"""`Explorer`: controls above, what a pure function makes of their state below, and a static copy for dead pages.

The function gets the state as keyword arguments and returns HTML. One that needs longer than a blink is a generator: it
yields what it has at once, and the page again with the rest. What it raises becomes one line in its place, which the audit
of a run finds: nothing is swallowed.
"""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import KitError
from ..figures import Picture
from .markup import failure, static_copy

if TYPE_CHECKING:
    import ipywidgets

DEBUG = False  # raise in place of showing one line: for those who write an explorer


@lru_cache(maxsize=1)
def board_class() -> type:
    """The widget that shows HTML and knows what was picked in it; made on first use, because anywidget is slow to import."""
    import anywidget
    import traitlets

    class Board(anywidget.AnyWidget):
        _esm = Path(__file__).with_name("board.js")
        value = traitlets.Unicode("").tag(sync=True)
        picked = traitlets.Unicode("").tag(sync=True)
        picks = traitlets.Int(0).tag(sync=True)

    return Board


class Explorer:
    """A pure function under a shell of controls.

    view:     keyword arguments (one for each control, and `picked` if it takes picks) -> HTML, or HTMLs growing complete
    controls: name -> an ipywidgets control whose `value` is that argument; each needs a `description`
    title:    said above the controls, and to screen readers
    picked:   what is picked at first; None for an explorer in which nothing can be picked
    on_pick:  picked value -> state changes {control: value}, for picks that move a control
    stage:    another widget above the board, and prepare: called with the state to bring it up to date, before the view
    still:    HTML that stands for the stage in the static copy
    """

    def __init__(
        self, view: Callable[..., str | Iterator[str]], controls: Mapping[str, ipywidgets.Widget], *, title: str,
        picked: str | None = None, on_pick: Callable[[str], Mapping[str, Any]] | None = None,
        stage: ipywidgets.Widget | None = None, prepare: Callable[..., None] | None = None,
        still: Callable[[], str] | None = None,
    ):  # fmt: skip
        import ipywidgets as widgets

        for name, control in controls.items():
            if not getattr(control, "description", ""):
                raise KitError(f"the control {name!r} of {title!r} has no description: say what it is for")
        self.view, self.controls, self.title, self.on_pick = view, dict(controls), title, on_pick
        self.prepare, self.still = prepare, still
        self.picked, self.error, self.seconds, self._held = picked, None, 0.0, False
        self.board = board_class()()
        for control in self.controls.values():
            control.observe(self._changed, names="value")
            if hasattr(control, "style") and control.style.has_trait("description_width"):
                control.style.description_width = "initial"  # else long descriptions are cut
        self.board.observe(self._was_picked, names="picks")
        heading = widgets.HTML(f'<h4 style="margin:0.25em 0">{html.escape(title)}</h4>')
        layout = widgets.Layout(flex_flow="row wrap", align_items="center")
        above = widgets.HBox(list(self.controls.values()), layout=layout)
        self.widget = widgets.VBox([heading, above, *([] if stage is None else [stage]), self.board])
        self.widget.add_class("medvlp-explorer")
        self.update()

    @property
    def state(self) -> dict[str, Any]:
        """What the view is asked."""
        state = {name: control.value for name, control in self.controls.items()}
        return state if self.picked is None else state | {"picked": self.picked}

    def set(self, **changes) -> Explorer:
        """Move several controls and draw once; returns the explorer."""
        unknown = set(changes) - set(self.controls) - {"picked"}
        if unknown:
            raise KitError(f"{self.title!r} has no control {sorted(unknown)[0]!r}: it has {', '.join(self.controls)}")
        self._held = True
        try:
            for name, value in changes.items():
                if name == "picked":
                    self.picked = str(value)
                else:
                    self.controls[name].value = value
        finally:
            self._held = False
        self.update()
        return self

    def update(self) -> None:
        """Draw the present state. `seconds` is the time to the first answer."""
        start, self.seconds = time.perf_counter(), 0.0
        self.error = None
        try:
            if self.prepare is not None:
                self.prepare(**self.state)
            made = self.view(**self.state)
            for page in [made] if isinstance(made, str) else made:
                self.board.value = page
                self.seconds = self.seconds or time.perf_counter() - start
        except Exception as error:  # whatever it is, it is shown, and the explorer goes on
            if DEBUG:
                raise
            self.error = error
            kind = "" if isinstance(error, KitError) else f"{type(error).__name__}: "
            self.board.value = failure(f"{kind}{error}")
        self.seconds = self.seconds or time.perf_counter() - start

    def _changed(self, change) -> None:
        if not self._held:
            self.update()

    def _was_picked(self, change) -> None:
        picked = self.board.picked
        if self.on_pick is not None:
            self.set(**{"picked": picked} if self.picked is not None else {}, **self.on_pick(picked))
        elif self.picked is not None:
            self.set(picked=picked)

    @property
    def static(self) -> Picture:
        """The present state as plain HTML: what a page says that has no running kernel."""
        told = "The explorer as it stood when this page was made. With a running kernel, use the controls above."
        shown = (self.still() if self.still is not None else "") + self.board.value
        return Picture(static_copy(self.title, told, shown), f"Explorer: {self.title}")

    def show(self) -> None:
        """Put the explorer on the page, and its static copy beneath. An error of the first state is raised."""
        from IPython.display import display

        if self.error is not None:
            raise self.error
        display(self.widget)
        display(self.static)
