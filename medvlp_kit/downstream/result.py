"""`Result`: a number that never travels without its rule, interval, split, prompts, seed and controls."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import KitError

if TYPE_CHECKING:
    import pandas

    from .intervals import Intervals

FEWEST = 30  # units below which no conclusion is drawn, whatever the interval says


@dataclass(frozen=True)
class Estimate:
    """A named value with its interval. A level that is known, not measured, such as chance, has none (NaN)."""

    name: str
    value: float
    low: float = math.nan
    high: float = math.nan

    @classmethod
    def of(cls, name: str, intervals: Intervals) -> Estimate:
        return cls(name, float(intervals.value), float(intervals.low), float(intervals.high))

    @property
    def bounds(self) -> tuple[float, float]:
        """(low, high), or the value twice when there is no interval."""
        return (self.value, self.value) if math.isnan(self.low) else (self.low, self.high)

    def __str__(self) -> str:
        interval = "" if math.isnan(self.low) else f" ({number(self.low)} to {number(self.high)})"
        return f"{self.name} {number(self.value)}{interval}"


def number(value: float) -> str:
    """Three decimals, or the word."""
    return "undefined" if math.isnan(value) else f"{value:.3f}"


@dataclass(frozen=True)
class Result:
    """One task's headline number and everything needed to read it.

    name:       the metric, such as "macro-AUROC"
    controls:   what the same metric says where nothing can have been learned; `control` is the hardest to beat
    n, unit:    how many of what the headline is an average over
    studies:    how many studies they come from, when one study can give several; these are what is resampled
    rule:       averaging, ties, empty cases, sign and rescaling, in words
    table:      the details (per finding, per k) as a DataFrame
    also:       further metrics of the same cases
    """

    task: str
    name: str
    value: float
    low: float
    high: float
    controls: tuple[Estimate, ...]
    n: int
    unit: str
    rule: str
    split: str
    prompts: str
    seed: int
    table: pandas.DataFrame = field(repr=False)
    also: tuple[Estimate, ...] = ()
    resamples: int = 1000
    level: float = 0.95
    fewest: int = FEWEST
    studies: int | None = None

    def __post_init__(self):
        if not self.controls:
            raise KitError(f"the result {self.name!r} has no control: give at least one, such as shuffled pairs")

    @property
    def control(self) -> Estimate:
        """The control that is hardest to beat: the one whose interval reaches highest."""
        defined = [control for control in self.controls if not math.isnan(control.value)]
        return max(defined or self.controls, key=lambda control: control.bounds[1])

    @property
    def passed(self) -> bool:
        """Whether the data show the model to be better than every control."""
        return self._verdict() == "above"

    @property
    def _independent(self) -> int:
        """How many units are independent: forty phrases of two studies are two."""
        return self.n if self.studies is None else min(self.n, self.studies)

    @property
    def size(self) -> str:
        """How many units, in words."""
        return f"n = {self.n} {self.unit}" + ("" if self.studies is None else f" in {self.studies} studies")

    def _verdict(self) -> str:
        low, high = self.control.bounds
        if math.isnan(self.value) or math.isnan(self.low):
            return "undefined"
        if self._independent < self.fewest:
            return "few"
        if self.low > high:
            return "above"
        return "below" if self.high < low else "overlap"

    @property
    def conclusion(self) -> str:
        """What may be concluded, in one sentence."""
        control = f"{self.control.name} ({number(self.control.value)})"
        return {
            "undefined": f"No conclusion: {self.name} is not defined on these data ({self.size}).",
            "few": f"Too few data to conclude: {self.size}, fewer than {self.fewest}.",
            "above": f"Better than every control: the interval lies above that of {control}.",
            "below": f"Worse than the control: the interval lies below that of {control}; check signs and pairing.",
            "overlap": f"Too few data to conclude, or no effect: the interval overlaps that of {control}.",
        }[self._verdict()]

    @property
    def facts(self) -> dict[str, str]:
        """The facts that always stand beside the number."""
        percent = f"{100 * self.level:g} %"
        return {
            "control": "; ".join(map(str, self.controls)),
            **({"also": "; ".join(map(str, self.also))} if self.also else {}),
            "rule": self.rule,
            "interval": f"{percent}, percentile bootstrap, {self.resamples} resamples",
            "split": self.split,
            "prompts": self.prompts,
            "seed": str(self.seed),
            "conclusion": self.conclusion,
        }

    @property
    def headline(self) -> str:
        """The number, its interval and n, in one line."""
        return f"{self.task}: {Estimate(self.name, self.value, self.low, self.high)}, {self.size}"

    def __str__(self) -> str:
        return "\n".join([self.headline, *(f"  {name}: {text}" for name, text in self.facts.items())])

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON types; undefined numbers become None, because JSON has no NaN."""
        numbers = {name: _finite(getattr(self, name)) for name in ("value", "low", "high")}
        estimates = {
            name: [{key: _finite(entry) for key, entry in vars(estimate).items()} for estimate in getattr(self, name)]
            for name in ("controls", "also")
        }
        names = ("n", "unit", "studies", "rule", "split", "prompts", "seed", "resamples", "level", "conclusion", "passed")
        table = self.table.reset_index().to_dict(orient="records")
        table = [{str(key): _finite(entry) for key, entry in row.items()} for row in table]
        return {
            "task": self.task, "name": self.name, **numbers, **estimates,
            **{name: getattr(self, name) for name in names}, "table": table,
        }  # fmt: skip

    def to_html(self) -> str:
        """A section of a page, legible without any style sheet."""
        rows = "".join(
            f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(text)}</td></tr>'
            for name, text in self.facts.items()
        )
        table = self.table.reset_index().to_html(float_format=number, na_rep="undefined", border=0, index=False)
        return f"<section><h3>{html.escape(self.headline)}</h3><table>{rows}</table>{table}</section>"

    def _repr_html_(self) -> str:
        return self.to_html()


def _finite(value: Any) -> Any:
    """A JSON value: numpy scalars unwrapped, NaN and infinities as None."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
