"""Build a scene and see everything that follows from it: pictures, boxes, report, questions, and what a model sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..downstream.classification import zero_shot_scores
from ..downstream.encode import encode_texts
from ..downstream.prompts import prompt_set
from ..encoders.features import ImageFeatures
from ..errors import KitError
from ..phantoms import chest, questions, report
from ..phantoms.scene import BILATERAL, CERTAINTIES, FINDINGS, SEVERITIES, SIDED, SIDES, ZONED, ZONES, Scene, Sign
from . import markup

if TYPE_CHECKING:
    from ..run_folder import Run
    from .shell import Explorer

NONE = "nothing"
SIDE = 96  # pixels a phantom is drawn with, larger than models read
ASKED = 6  # questions shown
LIKELY = 4  # findings of the model shown


def sign(finding: str, *, side: str, zone: str, severity: str, certainty: str = "definite") -> Sign:
    """A sign with the places that this finding can have; "bilateral" becomes the left where it cannot be."""
    if finding not in FINDINGS:
        raise KitError(f"{finding!r} is no finding of the phantoms: choose one of {', '.join(FINDINGS)}")
    where = side if finding in BILATERAL or side != "bilateral" else "left"
    return Sign(finding, where if finding in SIDED else None, zone if finding in ZONED else None, severity, certainty)


def scene_of(
    *, finding: str, side: str, zone: str, severity: str, certainty: str, also: str, projection: str, patient: int, exposure: int
) -> Scene:
    """The scene of the controls. The patient decides the anatomy, the exposure pose, grey values and noise."""
    signs = [] if finding == NONE else [sign(finding, side=side, zone=zone, severity=severity, certainty=certainty)]
    if also not in (NONE, finding):
        signs.append(sign(also, side="right", zone="lower", severity="moderate"))
    order = sorted(signs, key=lambda each: FINDINGS.index(each.finding))
    return Scene(
        seed=0, index=patient * 1_000 + exposure, patient=f"studio-{patient}", signs=tuple(order), projection=projection,
        draw=((patient * 2_654_435_761) % 2**31 << 32) | (exposure * 40_503 + 1),
    )  # fmt: skip


class Studio:
    """The pure function; `run`: a model to ask, None for none. Its prompts are encoded once."""

    def __init__(self, run: Run | None):
        self.run = run
        if run is not None:
            self.prompts = prompt_set(FINDINGS)
            length = run.budget.text_length
            self.text = encode_texts(run.model, run.tokenizer, self.prompts.sentences, length=length)

    def __call__(self, *, style: str, language: str, boxes: bool, **scene) -> str:
        """HTML of one scene. style, language: of the report; boxes: whether to draw the truth; the rest: `scene_of`."""
        truth = scene_of(**scene)
        tiles = []
        for view in chest.VIEWS:
            picture = chest.render([truth], size=SIDE, view=view)[0, 0]
            regions = chest.regions([truth], size=SIDE, view=view)[0] if boxes and truth.signs else ()
            said = ", ".join(dict.fromkeys(region.label for region in regions)) or "no boxes"
            tiles.append(
                markup.tile(
                    picture, boxes=[region.box for region in regions], side=230, caption=f"{view}, {truth.projection}"
                    if view == "frontal" else view, alt=f"Phantom chest radiograph, {view} view, with {said} drawn",
                )
            )  # fmt: skip
        written = report.write(truth, style=style, language=language)
        text = "".join(
            markup.note(f"{name}: {part}")
            for name, part in (("Findings", written.findings), ("Impression", written.impression))
            if part
        )
        asked = questions.ask(truth, language=language)[:ASKED]
        rows = [(question.text, question.answer) for question in asked]
        told = text + markup.table(["question", "answer"], rows, caption=f"{len(rows)} of the questions this scene answers")
        return markup.row(*tiles, f'<div style="max-width:34em">{told}</div>', self.seen(truth))

    def seen(self, truth: Scene) -> str:
        """What the model finds in the frontal view, most likely first."""
        if self.run is None:
            return ""
        model = self.run.model
        picture = chest.render([truth], size=self.run.budget.image_size)
        with torch.inference_mode():
            features: ImageFeatures = model.encode_image(picture.to(next(model.parameters()).device))
        shares = zero_shot_scores(model, features, self.prompts, text=self.text, probabilities=True)[0]
        best = shares.argsort(descending=True)[:LIKELY].tolist()
        present = {each.finding for each in truth.signs}
        rows = [(FINDINGS[k], f"{shares[k]:.2f}", "yes" if FINDINGS[k] in present else "no") for k in best]
        caption = f"What {self.run.recipe.title} sees: softmax over a pair of prompts, not a probability of disease"
        return markup.table(["finding", "share", "in the scene"], rows, caption=caption)


def phantom_studio(run: Run | None = None) -> Explorer:
    """Build phantoms by hand; with `run`, ask its model what it sees."""
    import ipywidgets as widgets

    from .shell import Explorer

    def choice(options, value, description):
        return widgets.Dropdown(options=list(options), value=value, description=description)

    def number(value, most, description):
        return widgets.IntSlider(value=value, min=0, max=most, description=description, continuous_update=False)

    controls = {
        "finding": choice([NONE, *FINDINGS], "Pleural Effusion", "finding"),
        "side": choice([*SIDES, "bilateral"], "left", "side"),
        "zone": choice(ZONES, "lower", "zone"),
        "severity": choice(SEVERITIES, "severe", "severity"),
        "certainty": choice(CERTAINTIES, "definite", "certainty"),
        "also": choice([NONE, *FINDINGS], NONE, "and also"),
        "projection": choice(["PA", "AP"], "PA", "projection"),
        "patient": number(3, 99, "patient"),
        "exposure": number(0, 99, "exposure"),
        "style": choice(report.STYLES, "prose", "style"),
        "language": choice(["en", "es"], "en", "language"),
        "boxes": widgets.Checkbox(value=True, description="show boxes", indent=False),
    }
    return Explorer(Studio(run), controls, title="Phantom studio")
