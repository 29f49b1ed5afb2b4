"""Evaluate a run: every task the data allow, on its held-out split, as one table, one JSON file and one page."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ..budget import Budget
from ..budget import budget as budget_of
from ..errors import KitError, unknown
from ..study import Collection
from .encode import Examination
from .result import Result, number

if TYPE_CHECKING:
    from ..run_folder import Run

JSON, PAGE = "evaluation.json", "evaluation.html"


@dataclass(frozen=True)
class Task:
    """A task by name: `run(examination, seed)`, and `missing(examination)`: why these data do not allow it, or None."""

    run: Callable[[Examination, int], Result]
    missing: Callable[[Examination], str | None]


def _zero_shot(exam: Examination, seed: int) -> Result:
    from .classification import zero_shot

    return zero_shot(exam.model, exam.tokenizer, exam.collection, seed=seed, examination=exam)


def _retrieval(exam: Examination, seed: int) -> Result:
    from .retrieval import retrieval

    return retrieval(exam.model, exam.tokenizer, exam.collection, seed=seed, examination=exam)


def _grounding(exam: Examination, seed: int) -> Result:
    from .grounding import ground

    return ground(exam.model, exam.tokenizer, exam.collection, seed=seed, examination=exam)


def _probe(name: str) -> Callable[[Examination, int], Result]:
    """The probe of that name, imported when it is run."""

    def run(exam: Examination, seed: int) -> Result:
        from . import probes

        return getattr(probes, name)(exam.model, exam.tokenizer, exam.collection, seed=seed, examination=exam)

    return run


def _no_labels(exam: Examination) -> str | None:
    if not exam.collection.label_names:
        return "the data have no labels"
    labels = exam.collection.labels(range(len(exam)))  # (N, F)
    both = (labels == 1).any(0) & (labels == 0).any(0)
    return None if both.any() else "no label is both present and absent among the studies"


def _no_boxes(exam: Examination) -> str | None:
    size, collection = exam.budget.image_size, exam.collection
    some = any(collection.regions(i, size=size) for i in range(len(collection)))
    return None if some else "the data have no boxes in the frontal view"


def _no_sides(exam: Examination) -> str | None:
    from .probes import one_sided

    return None if any(one_sided(exam.collection)) else "the data say of no finding on which side it is"


def _no_zones(exam: Examination) -> str | None:
    from .probes.zones import one_zone

    return None if one_zone(exam.collection) else "the data have no finding in different zones"


def _no_severities(exam: Examination) -> str | None:
    from .probes.severity import graded

    return None if graded(exam.collection) else "the data have no finding in different grades of severity"


def _no_crops(exam: Examination) -> str | None:
    from .probes.crops import crop_cases

    return None if any(crop_cases(exam)) else "the data have no box that a part of the picture could hold or leave out"


TASKS = {
    "zero-shot": Task(_zero_shot, _no_labels),
    "retrieval": Task(_retrieval, lambda exam: None),
    "grounding": Task(_grounding, _no_boxes),
    "side-swap": Task(_probe("side_swap"), _no_sides),
    "negation": Task(_probe("negation"), _no_labels),
    "zone": Task(_probe("zone"), _no_zones),
    "severity-order": Task(_probe("severity_order"), _no_severities),
    "crop-consistency": Task(_probe("crop_consistency"), _no_crops),
    "blank-image": Task(_probe("blank_image"), _no_labels),
}


class Results(list):
    """The results of one evaluation, a list, with the tasks that were not possible and why (`absent`)."""

    def __init__(self, results: Sequence[Result] = (), *, absent: dict[str, str] | None = None, title: str = ""):
        super().__init__(results)
        self.absent, self.title = absent or {}, title

    @property
    def table(self) -> pd.DataFrame:
        """One row a task: number, interval, hardest control, n, conclusion."""
        rows = [
            {
                "task": result.task, "metric": result.name, "value": result.value, "low": result.low,
                "high": result.high, "control": result.control.value, "control is": result.control.name,
                "n": result.n, "conclusion": result.conclusion,
            }
            for result in self
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=list(rows[0]) if rows else ["task"]).set_index("task")

    def __str__(self) -> str:
        numbers = self.table.drop(columns="conclusion", errors="ignore").reset_index()
        parts = [self.title] if self.title else []
        if len(self):
            parts.append(numbers.to_string(index=False, float_format=number, na_rep="-"))
        parts += map(str, self)
        parts += [f"{name}: not possible, {why}" for name, why in self.absent.items()]
        return "\n\n".join(parts)

    def to_dict(self) -> dict:
        return {"title": self.title, "results": [result.to_dict() for result in self], "not possible": self.absent}

    def _repr_html_(self) -> str:
        """Number table, then one section a task; legible without a style sheet."""
        table = self.table.reset_index().to_html(float_format=number, na_rep="-", border=0, index=False) if len(self) else ""
        absent = "".join(
            f"<li>{html.escape(name)}: not possible, {html.escape(why)}</li>" for name, why in self.absent.items()
        )
        sections = "".join(result.to_html() for result in self)
        return f"{table}{f'<ul>{absent}</ul>' if absent else ''}{sections}"


def examine(
    exam: Examination, *, task: str | Sequence[str] = "all", seed: int = 0, title: str = ""
) -> Results:
    """Run tasks on one examination. "all" leaves out what the data do not allow and says why; a task that was named
    and is not possible is left out likewise, unless it is the only one: then it is an error."""
    names = list(TASKS) if task == "all" else [task] if isinstance(task, str) else list(task)
    results = Results(title=title)
    for name in names:
        if name not in TASKS:
            raise unknown("task", name, ["all", *TASKS])
        reason = TASKS[name].missing(exam)
        if reason is None:
            results.append(TASKS[name].run(exam, seed))
        elif len(names) == 1:
            raise KitError(f"{name} is not possible on {exam.collection.name}: {reason}; try another task or data set")
        else:
            results.absent[name] = reason
    return results


def evaluate(
    run: Run | str | Path, *, task: str | Sequence[str] = "all", data: Collection | str | None = None,
    root: str | Path | None = None, budget: str | Budget | None = None, split: str | None = "test",
    text: str = "report", out: str | Path | None = None, seed: int = 0, device: str = "cpu", show: bool = True,
) -> Results:  # fmt: skip
    """Evaluate a run, given as its folder or as a `Run`, on the held-out `split` of the data it was trained on.

    data, root: other data instead: a Collection, or the name and folder of a data set
    budget:     sizes of the evaluation; image size and text length stay those of the run
    out:        folder of evaluation.json and evaluation.html; the run's own when None; nothing is written for a run
                that is in memory only
    show:       print the table, the rules and the conclusions
    """
    from ..run_folder import load_run

    if isinstance(run, str | Path):
        run = load_run(run, device=device)
    sizes = run.budget if budget is None else budget_of(budget)
    sizes = sizes.but(image_size=run.budget.image_size, text_length=run.budget.text_length)
    collection = data if isinstance(data, Collection) else open_data(run, data, root, sizes=sizes)
    if collection.channels != (wanted := getattr(run.model.image_encoder, "channels", collection.channels)):
        raise KitError(
            f"{collection.name} has {collection.channels} channels, the model of this run reads {wanted}: "
            "open the data with that many channels"
        )
    exam = Examination(run.model, run.tokenizer, collection, budget=sizes, split=split, text=text, seed=seed)
    where = f" ({run.folder.name})" if run.folder else ""
    results = examine(exam, task=task, seed=seed, title=f"{run.recipe.title}{where} on {exam.where}")
    folder = Path(out) if out is not None else run.folder
    if folder is not None:
        from .page import draw

        write(results, folder, pictures=draw(exam, results))
    if show:
        print(results)
        if folder is not None:
            print(f"\nwritten: {folder / JSON}, {folder / PAGE}")
    return results


def open_data(
    run: Run, name: str | None = None, root: str | Path | None = None, *, sizes: Budget | None = None
) -> Collection:
    """The data a run was trained on, or others by name, with as many channels as the run's model reads."""
    from .. import datasets

    described = dict(run.data)
    trained_on = datasets.known(str(described.pop("name")).split("/")[0])  # a collection's name may end in its split
    place = described.pop("root", None)
    if name is not None and datasets.known(name) != trained_on:
        described, place = {}, None
    name = trained_on if name is None else datasets.known(name)
    if name == datasets.PHANTOMS:
        described = {"seed": run.seed} | described | {"size": (sizes or run.budget).test_studies}
    elif (channels := getattr(run.model.image_encoder, "channels", 1)) != 1:
        described = {"channels": channels} | described
    return datasets.load(name, root if root is not None else place, **described)


def write(results: Results, folder: str | Path, *, pictures: Sequence[tuple[str, str]] = ()) -> tuple[Path, Path]:
    """Write evaluation.json and evaluation.html, each whole or not at all. Returns their paths.

    pictures: (heading, figure as HTML) for the page, as `page.draw` makes them
    """
    from ..checkpoint import write_text
    from .page import whole_page

    folder = Path(folder)
    page = whole_page(results.title, results._repr_html_(), pictures=pictures)
    write_text(folder / JSON, json.dumps(results.to_dict(), indent=2, allow_nan=False) + "\n")
    write_text(folder / PAGE, page)
    return folder / JSON, folder / PAGE
