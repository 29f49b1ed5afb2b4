"""The scene: everything that is true of one phantom exam, before anything is drawn or written.

Image, masks, boxes, report, labels and questions are all rendered from a `Scene`, so they can never disagree unless
a lesson makes them disagree on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass

# Names follow CheXpert's label table, so prompts and tables carry over to real sets.
FINDINGS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Fracture",
    "Support Devices",
)
SIDED = ("Lung Lesion", "Consolidation", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Fracture", "Support Devices")
BILATERAL = ("Consolidation", "Atelectasis", "Pleural Effusion")  # may be on both sides at once
ZONED = ("Lung Lesion", "Consolidation", "Atelectasis", "Fracture")
ZONES = ("upper", "middle", "lower")
SIDES = ("left", "right")
SEVERITIES = ("mild", "moderate", "severe")
CERTAINTIES = ("definite", "possible")
CHANGES = ("new", "resolved", "improved", "worsened", "unchanged")


@dataclass(frozen=True)
class Sign:
    """One finding on one exam. `side` is the patient's; the patient's right is on the picture's left."""

    finding: str
    side: str | None = None  # left | right | bilateral, None for midline findings
    zone: str | None = None  # upper | middle | lower, None where a zone says nothing
    severity: str = "moderate"  # mild | moderate | severe: drives size and contrast
    certainty: str = "definite"  # a "possible" sign is drawn fainter and written with a hedge
    count: int = 1  # lesions or fractured ribs


@dataclass(frozen=True)
class Change:
    """What became of one finding since the prior exam."""

    finding: str
    kind: str  # new | resolved | improved | worsened | unchanged
    side: str | None = None


@dataclass(frozen=True)
class Scene:
    """One phantom exam: study `index` of the world `seed`."""

    seed: int
    index: int
    patient: str
    signs: tuple[Sign, ...]
    projection: str = "PA"  # of the frontal view: PA | AP
    sex: str = "F"
    age: int = 60
    draw: int = 0  # the random stream of anatomy, exposure and finding shapes; a prior exam shares the anatomy part
    prior: Scene | None = None
    changes: tuple[Change, ...] = ()

    @property
    def normal(self) -> bool:
        return not self.signs

    def sign(self, finding: str) -> Sign | None:
        return next((sign for sign in self.signs if sign.finding == finding), None)
