"""One exam and one batch: `Study`, what is known of it, and `Batch`, the collated tensors every model reads.

A `Collection` is anything with studies in it: the phantoms, a public data set in its official layout, a user's own
manifest. Training and evaluation see only this interface, so whatever works on phantoms works on real studies.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # the annotations need torch; reading this file must not
    from torch import Tensor

PRESENT, UNCERTAIN, ABSENT = "present", "uncertain", "absent"
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Finding:
    """One statement about one finding, as labelled by a reader or extracted from a report."""

    name: str
    status: str = PRESENT  # present | uncertain | absent
    side: str | None = None  # left | right | bilateral (the patient's side, not the picture's)
    zone: str | None = None  # upper | middle | lower
    severity: str | None = None  # mild | moderate | severe


@dataclass(frozen=True)
class Region:
    """Where something is in one view: a half-open pixel box (x0, y0, x1, y1) and, if known, a mask (H, W) bool."""

    label: str
    box: tuple[float, float, float, float]
    mask: Tensor | None = None
    side: str | None = None
    zone: str | None = None
    view: str = "frontal"


@dataclass(frozen=True)
class Question:
    """A visual question with its answer; `closed` questions are answered by yes or no."""

    text: str
    answer: str
    kind: str = "other"  # presence | side | zone | count | severity | view | change | other
    closed: bool = False


@dataclass(frozen=True)
class Report:
    """A radiology report. `text` is all of it; the two sections are empty when the source does not separate them."""

    text: str
    findings: str = ""
    impression: str = ""
    language: str = "en"


@dataclass(frozen=True)
class View:
    """One image of an exam. `load()` gives float32 (C, H, W) in [0, 1] at native size; nothing is read before."""

    name: str  # frontal | lateral | ...
    load: Callable[[], Tensor] = field(repr=False)


@dataclass(frozen=True)
class Study:
    """One exam: views, report, and whatever else is known of it."""

    identifier: str
    patient: str
    views: tuple[View, ...]
    report: Report
    findings: tuple[Finding, ...] = ()
    regions: tuple[Region, ...] = ()
    questions: tuple[Question, ...] = ()
    modality: str = "chest radiograph"
    prior: Study | None = None
    split: str | None = None


@dataclass(frozen=True)
class Tokens:
    """Token ids (B, T) int64 and their mask (B, T) bool, True on real tokens."""

    ids: Tensor
    mask: Tensor

    def to(self, device) -> Tokens:
        return Tokens(self.ids.to(device), self.mask.to(device))


@dataclass(frozen=True)
class Batch:
    """B collated studies.

    views:  name -> (B, C, H, W) float32 in [0, 1]; the first is the principal one
    texts:  name -> Tokens; the first is the one that is paired with the image
    labels: (B, F) float32: 1 present, 0 absent, NaN uncertain or unknown; columns are `label_names`
    findings: what is stated of each study, with side and zone; empty unless collation was asked for it
    """

    indices: tuple[int, ...]
    views: dict[str, Tensor]
    texts: dict[str, Tokens]
    sentences: tuple[str, ...]  # the principal texts, as strings
    labels: Tensor
    label_names: tuple[str, ...] = ()
    findings: tuple[tuple[Finding, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def images(self) -> Tensor:
        """The principal view, (B, C, H, W)."""
        return next(iter(self.views.values()))

    @property
    def tokens(self) -> Tokens:
        """The principal text."""
        return next(iter(self.texts.values()))

    def to(self, device) -> Batch:
        return replace(
            self,
            views={name: view.to(device) for name, view in self.views.items()},
            texts={name: tokens.to(device) for name, tokens in self.texts.items()},
            labels=self.labels.to(device),
        )


class Tokenizer(Protocol):
    """What collation needs of a tokenizer (see `text.ReportTokenizer`)."""

    def encode(self, texts: Sequence[str], *, length: int) -> Tokens: ...


class Collection(ABC):
    """Studies by index. Subclasses give `__len__`, `study`, `images` and `labels`."""

    name: str = "collection"
    label_names: tuple[str, ...] = ()
    channels: int = 1

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def study(self, index: int) -> Study:
        """Study `index`; cheap: pixels are read only when a view is loaded."""

    @abstractmethod
    def images(self, indices: Sequence[int], *, size: int, view: str = "frontal") -> Tensor:
        """(B, C, size, size) float32 in [0, 1]: resized to fit, padded to a square, never stretched."""

    @abstractmethod
    def labels(self, indices: Sequence[int]) -> Tensor:
        """(B, F) float32: 1 present, 0 absent, NaN uncertain or unknown."""

    def regions(self, index: int, *, size: int, view: str = "frontal") -> tuple[Region, ...]:
        """Regions in the pixels of `images(..., size=size)`."""
        return ()

    def report(self, index: int) -> Report:
        return self.study(index).report

    def findings(self, index: int) -> tuple[Finding, ...]:
        return self.study(index).findings

    def split(self, name: str) -> Collection:
        """The part whose split is `name`; splits are by patient and never share a report text."""
        return Subset(self, [i for i in range(len(self)) if self.study(i).split == name], name=f"{self.name}/{name}")

    def subset(self, indices: Sequence[int]) -> Collection:
        return Subset(self, list(indices), name=self.name)


class Subset(Collection):
    """Some studies of another collection, in the order given."""

    def __init__(self, parent: Collection, indices: list[int], *, name: str):
        self.parent, self.chosen, self.name = parent, indices, name
        self.label_names, self.channels = parent.label_names, parent.channels

    def __len__(self) -> int:
        return len(self.chosen)

    def study(self, index: int) -> Study:
        return self.parent.study(self.chosen[index])

    def images(self, indices: Sequence[int], *, size: int, view: str = "frontal") -> Tensor:
        return self.parent.images([self.chosen[i] for i in indices], size=size, view=view)

    def labels(self, indices: Sequence[int]) -> Tensor:
        return self.parent.labels([self.chosen[i] for i in indices])

    def regions(self, index: int, *, size: int, view: str = "frontal") -> tuple[Region, ...]:
        return self.parent.regions(self.chosen[index], size=size, view=view)

    def report(self, index: int) -> Report:
        return self.parent.report(self.chosen[index])

    def findings(self, index: int) -> tuple[Finding, ...]:
        return self.parent.findings(self.chosen[index])
