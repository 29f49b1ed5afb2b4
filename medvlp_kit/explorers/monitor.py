"""Watch a run while it trains: losses, gradients, probes; and stop it so that what it has learned is kept.

    monitor = explorers.training_monitor(probes=["recall@5"])
    run = await monitor.train(pretrain, "kad", phantoms, probe=...)

Training happens on a thread of its own while the cell waits, so that the button is heard: ipykernel hands messages of
widgets to a cell that waits, not to one that computes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import KitError
from . import markup

APART = ("step", "learning_rate", "pairs_per_second", "mfu", "waiting")  # of the loop, not of what is learned
PAUSE = 0.25  # seconds between two drawings at least: drawing is not training


def groups_of(names: Sequence[str], *, losses: Sequence[str] = (), probes: Sequence[str] = ()) -> dict[str, list[str]]:
    """Which columns of a history belong in one chart: "losses", "gradients", "cosines", "probes".

    A column is a loss when it is called so, is named in `losses`, or has details of its own, as `queries` has
    `queries/place`; norms and cosines are known by their names.
    """
    heads = {name.split("/")[0] for name in names if "/" in name}
    cosines = [name for name in names if "cosine" in name and name not in probes]
    gradients = [name for name in names if "gradient" in name and name not in (*cosines, *probes)]
    lost = [
        name for name in names
        if (name in ("loss", *losses) or name in heads) and name not in (*gradients, *cosines, *probes)
    ]  # fmt: skip
    found = {"losses": lost, "gradients": gradients, "cosines": cosines, "probes": [n for n in names if n in probes]}
    return {title: members for title, members in found.items() if members}


def training_page(
    rows: Sequence[Mapping[str, float]], *, losses: Sequence[str] = (), probes: Sequence[str] = (), state: str = ""
) -> str:
    """HTML of a history: a chart for each group of columns, and the last row in words."""
    if not rows:
        return markup.note(state or "Waiting for the first row of the history.")
    names = list(dict.fromkeys(name for row in rows for name in row))
    charts = []
    for title, members in groups_of(names, losses=losses, probes=probes).items():
        series = {}
        for name in members:
            points = [(row["step"], row[name]) for row in rows if name in row and row[name] == row[name]]
            if points:
                series[name] = tuple(zip(*points))
        if series:
            said = ", ".join(f"{name} {ys[-1]:.3g}" for name, (_, ys) in series.items())
            charts.append(markup.lines(series, alt=f"Chart of {title} over {len(rows)} rows: {said}", caption=said, x_label="step"))
    last = rows[-1]
    told = f"Step {int(last['step'])}: loss {last['loss']:.3f}"
    if "pairs_per_second" in last:
        told += f", {last['pairs_per_second']:.0f} pairs a second"
    if "waiting" in last:
        told += f", {last['waiting']:.0%} of the time waiting for data"
    return markup.note(f"{told}. {state}".strip()) + markup.row(*charts)


class Monitor:
    """A page that grows with the history.

    losses, probes: columns that belong in those charts, where their names do not say so
    """

    title = "Training as it goes"

    def __init__(self, *, losses: Sequence[str] = (), probes: Sequence[str] = ()):
        import ipywidgets as widgets

        from .shell import board_class

        self.rows: list[dict[str, Any]] = []
        self.options = {"losses": tuple(losses), "probes": tuple(probes)}
        self.stopped, self._drawn = False, 0.0
        self.button = widgets.Button(description="Stop and keep", button_style="warning", tooltip="End the run after this step")
        self.button.on_click(self._stop)
        self.board = board_class()()
        heading = widgets.HTML(f'<h4 style="margin:0.25em 0">{self.title}</h4>')
        self.widget = widgets.VBox([heading, self.button, self.board])
        self.widget.add_class("medvlp-explorer")
        self.draw()

    def log(self, row: Mapping[str, float]) -> None:
        """Take one row of the history."""
        if "step" not in row or "loss" not in row:
            raise KitError(f"a row of the history has a step and a loss, this one {sorted(row)}")
        self.rows.append(dict(row))
        if time.perf_counter() - self._drawn >= PAUSE:
            self.draw()

    def should_stop(self) -> bool:
        """Whether the button was pressed."""
        return self.stopped

    def draw(self, state: str = "") -> None:
        state = state or ("Stopping after this step: what it has learned is kept." if self.stopped else "")
        self.board.value = training_page(self.rows, **self.options, state=state)
        self._drawn = time.perf_counter()

    def _stop(self, _) -> None:
        self.stopped = True
        self.button.disabled = True
        self.draw()

    async def train(self, pretrain: Callable, *arguments, **options):
        """Show the page, run `pretrain(*arguments, **options)` on a thread, and return what it returns.

        `pretrain` takes on_log= and should_stop=, as the kit's does. Interrupting the kernel stops the run as well.
        """
        from IPython.display import display

        from ..figures import Picture

        display(self.widget)
        ended = "Ended by an error."
        try:
            run = await asyncio.to_thread(pretrain, *arguments, on_log=self.log, should_stop=self.should_stop, **options)
            ended = "Stopped by the button; kept." if self.stopped else "Finished."
        except (asyncio.CancelledError, KeyboardInterrupt):
            self.stopped, ended = True, "Interrupted."  # the thread ends after its step
            raise
        finally:
            self.button.disabled = True
            self.draw(ended)
            told = "The run as it ended when this page was made."
            display(Picture(markup.static_copy(self.title, told, self.board.value), f"Explorer: {self.title}"))
        return run


def training_monitor(*, losses: Sequence[str] = (), probes: Sequence[str] = ()) -> Monitor:
    """A monitor for one run of `pretrain`."""
    return Monitor(losses=losses, probes=probes)
