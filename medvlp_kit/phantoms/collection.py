"""The phantoms as a `Collection`: an endless supply of exams, cut into train, validation and test by patient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import KitError, unknown
from ..study import PRESENT, SPLITS, UNCERTAIN, Collection, Finding, Region, Report, Study, View
from . import chest
from .sampling import World, scene
from .scene import FINDINGS, Scene

SPAN = 1 << 32  # indices between the first studies of two splits: no collection is longer
VIEWS = (*chest.VIEWS, "prior")


class Phantoms(Collection):
    """`size` phantom exams of one split: study i is the same whatever the size of the collection.

    seed         the world; another seed gives other patients
    split        train (default), validation or test: no patient is in two of them
    world        the knobs of sampling (`World`)
    image_size   pixels a side of the views of `study(i)` and of its regions
    language     of the reports: en or es
    style        a dictation style of `phantoms.report`, None for a mixture

    Labels are 1 for every sign of the scene whatever its certainty, else 0, in the order of FINDINGS.
    """

    name = "phantoms"
    label_names = FINDINGS
    channels = 1

    def __init__(
        self,
        size: int,
        *,
        seed: int = 0,
        split: str | None = None,
        world: World | None = None,
        image_size: int = 64,
        language: str = "en",
        style: str | None = None,
    ):
        if isinstance(size, bool) or not isinstance(size, int) or not 0 < size <= SPAN // 2:
            raise KitError(f"Phantoms(size={size!r}): give a whole number of studies, at least 1")
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise KitError(f"Phantoms(seed={seed!r}): give a whole number")
        if split is not None and split not in SPLITS:
            raise unknown("split", split, SPLITS)
        chest.check(image_size, "frontal")
        self.size, self.seed, self.image_size = size, seed, image_size
        self.world = world if world is not None else World()
        self.language, self.style = language, style
        self.part = split or SPLITS[0]
        self.name = f"phantoms/{self.part}"
        # the first index of a split is a multiple of studies_per_patient, so that no patient is in two splits
        many = self.world.studies_per_patient
        self._start = -(-SPLITS.index(self.part) * SPAN // many) * many
        self._scenes: dict[int, Scene] = {}

    def __len__(self) -> int:
        return self.size

    def split(self, name: str) -> Phantoms:
        """The same world's exams of another split, as many as here: splits are separate streams, not shares."""
        return Phantoms(self.size, seed=self.seed, split=name, world=self.world, image_size=self.image_size,
                        language=self.language, style=self.style)  # fmt: skip

    def scene(self, index: int) -> Scene:
        """The truth of study `index`."""
        found = self._scenes.get(index)
        if found is None:
            if not 0 <= index < self.size:
                raise KitError(f"{self.name} has no study {index}: indices go from 0 to {self.size - 1}")
            found = self._scenes[index] = scene(self.world, self.seed, self._start + index)
        return found

    def images(self, indices: Sequence[int], *, size: int, view: str = "frontal",
               device: torch.device | str = "cpu") -> Tensor:  # fmt: skip
        """(B, 1, size, size) float32 in [0, 1]. view: frontal, lateral, or prior, the frontal view of the exam before;
        a study without one gives an all-zero picture."""
        scenes = [self.scene(int(index)) for index in indices]
        if view != "prior":
            if view not in VIEWS:
                raise unknown("view", view, VIEWS)
            return chest.render(scenes, size=size, view=view, device=device)
        rows = [row for row, each in enumerate(scenes) if each.prior is not None]
        pictures = torch.zeros((len(scenes), 1, size, size), device=device)
        pictures[rows] = chest.render([scenes[row].prior for row in rows], size=size, device=device)
        return pictures

    def labels(self, indices: Sequence[int]) -> Tensor:
        """(B, F) float32: 1 where the scene has the sign, definite or possible; else 0."""
        table = torch.zeros((len(indices), len(FINDINGS)))
        for row, index in enumerate(indices):
            for sign in self.scene(int(index)).signs:
                table[row, FINDINGS.index(sign.finding)] = 1
        return table

    def regions(self, index: int, *, size: int, view: str = "frontal") -> tuple[Region, ...]:
        return _regions(self.scene(index), size, view)

    def report(self, index: int) -> Report:
        from . import report

        return report.write(self.scene(index), style=self.style, language=self.language)

    def findings(self, index: int) -> tuple[Finding, ...]:
        return _findings(self.scene(index))

    def study(self, index: int) -> Study:
        from . import questions

        each = self.scene(index)
        before = None
        if each.prior is not None:
            before = self._study(each.prior, f"{self._identifier(index)}-prior", ())
        return self._study(each, self._identifier(index), questions.ask(each), before)

    def _identifier(self, index: int) -> str:
        return f"{self.part}-{self.seed}-{index:06d}"

    def _study(self, each: Scene, identifier: str, asked: tuple, before: Study | None = None) -> Study:
        from . import report

        size = self.image_size
        return Study(
            identifier=identifier,
            patient=each.patient,
            views=tuple(View(name, _Load(each, size, name)) for name in chest.VIEWS),
            report=report.write(each, style=self.style, language=self.language),
            findings=_findings(each),
            regions=tuple(region for name in chest.VIEWS for region in _regions(each, size, name)),
            questions=tuple(asked),
            prior=before,
            split=self.part,
        )  # fmt: skip


def _findings(each: Scene) -> tuple[Finding, ...]:
    return tuple(
        Finding(
            sign.finding,
            UNCERTAIN if sign.certainty == "possible" else PRESENT,
            sign.side,
            sign.zone,
            sign.severity,
        )
        for sign in each.signs
    )


def _regions(each: Scene, size: int, view: str) -> tuple[Region, ...]:
    if view == "prior":
        if each.prior is None:
            return ()
        each, view = each.prior, "frontal"
    return chest.regions([each], size=size, view=view)[0] if each.signs else ()


class _Load:
    """Draws one view when called; a class, so that a study can be pickled and sent to another process."""

    def __init__(self, each: Scene, size: int, view: str):
        self.each, self.size, self.view = each, size, view

    def __call__(self) -> Tensor:
        return chest.render([self.each], size=self.size, view=self.view)[0]
