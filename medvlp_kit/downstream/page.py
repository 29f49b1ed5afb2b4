"""The evaluation as one page a reader can share: the numbers at a glance, where the model looks, every rule."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
import torch

from .encode import Examination
from .grounding import Cases, mean_iou, phrase_maps, rescaled
from .result import Result

SHOWN = 6  # cases of the picture of maps
GLANCE, MAPS = "At a glance", "Where the model looks"
STYLE = """
:root { color-scheme: light dark; --rule: #d5d5d5; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2, h3 { margin: 2.5rem 0 .5rem; border-top: 1px solid var(--rule); padding-top: 1rem; }
h2 { font-size: 1.25rem; } h3 { font-size: 1.05rem; }
table { border-collapse: collapse; margin: .75rem 0; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
figure { margin: 1rem 0; } figure img { background: white; border-radius: 4px; }
figcaption { font-size: .9rem; opacity: .8; } .numbers { overflow-x: auto; } section { overflow-x: auto; }
@media (prefers-color-scheme: dark) { :root { --rule: #555; } body { background: #161616; color: #e8e8e8; } }
"""


def whole_page(title: str, body: str, *, pictures: Sequence[tuple[str, str]] = ()) -> str:
    """The HTML of the page; pictures: (heading, figure as HTML)."""
    figures = "".join(f"<h2>{html.escape(heading)}</h2>{figure}" for heading, figure in pictures)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Evaluation: {html.escape(title)}'
        f'</title><meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><h1>{html.escape(title)}</h1>"
        "<p>Every number stands beside what the same metric says where nothing can have been learned. "
        f"Not for clinical use.</p>{figures}<h2>The numbers and their rules</h2>{body}</body></html>\n"
    )


def draw(exam: Examination, results: Sequence[Result], *, kind: str = "lexicon") -> list[tuple[str, str]]:
    """The pictures of the page: (heading, figure as HTML), those that the results allow."""
    pictures = []
    shares = [result for result in results if 0 <= result.value <= 1]
    if shares:
        pictures.append((GLANCE, glance(shares)))
    if any(result.task == "grounding" for result in results):
        pictures.append((MAPS, maps(exam, kind=kind)))
    return pictures


def glance(results: Sequence[Result]) -> str:
    """Headline numbers with intervals, each beside its hardest control."""
    import pandas as pd

    from .. import figures

    rows = [(f"{r.task}: {r.name}", r.value, r.low, r.high, r.control.value) for r in results]
    frame = pd.DataFrame(rows, columns=["name", "estimate", "low", "high", "control"])
    fig = figures.interval_plot(frame, limits=(0, 1), control_name="hardest control")
    said = "; ".join(f"{name} {value:.2f} beside its control {control:.2f}" for name, value, *_, control in rows)
    return str(
        figures.picture(
            fig,
            alt=f"One line a task with estimate, interval and hardest control: {said}",
            caption="Estimates with 95 % intervals. An open diamond is the control that is hardest to beat; scales differ "
            "from task to task, so compare a number with its own control alone.",
        )
    )


def maps(exam: Examination, *, kind: str = "lexicon") -> str:
    """Maps of cases from the best to the worst by mIoU, at even steps, above those of random weights."""
    from .. import figures

    size = exam.budget.image_size
    cases = Cases(exam.collection, size=size)
    own, control = (phrase_maps(of, cases, kind=kind) for of in (exam, exam.control))
    every = np.arange(len(cases))
    parts = [rows for rows in np.array_split(every, 8) if len(rows)]  # all maps at once would fill the memory
    scores = torch.cat([mean_iou(own(rows), [cases.boxes[row] for row in rows]) for rows in parts])
    known = np.flatnonzero(~torch.isnan(scores).numpy())
    ranked = known[np.argsort(-scores[known].numpy(), kind="stable")]
    chosen = ranked[np.linspace(0, len(ranked) - 1, min(SHOWN, len(ranked))).round().astype(int)]
    pictures = exam.collection.images(cases.studies[chosen].tolist(), size=size)
    names = [f"{side} {label}".lower() if side else label.lower() for label, side in zip(cases.labels, cases.sides)]
    titles = [f"{names[row]}\nmIoU {scores[row]:.2f}" for row in chosen]
    both = torch.cat([rescaled(own(chosen)), rescaled(control(chosen))])
    fig = figures.grid(
        torch.cat([pictures, pictures]), titles=[*titles, *["random weights\n"] * len(chosen)], heatmaps=both,
        boxes=[cases.boxes[row].tolist() for row in chosen] * 2, columns=len(chosen), heatmap_scale=(-1, 1),
        heatmap_label="map, each rescaled by its own extremes", cell=1.7,
    )  # fmt: skip
    return str(
        figures.picture(
            fig,
            alt=f"{len(chosen)} pictures with boxes and the model's maps from best to worst: "
            f"{', '.join(names[row] for row in chosen)}; below them the maps of random weights",
            caption=f"What each patch adds to the phrase, for {len(chosen)} of {len(cases)} phrases at even steps from the best "
            "to the worst by mIoU; boxes are the truth. Below, the same pictures seen by the model with random weights.",
        )
    )
