"""`FileCollection`: what all data sets on disk share. An adaptor only turns its layout into `Record`s."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ..errors import KitError, unknown
from ..study import ABSENT, PRESENT, SPLITS, UNCERTAIN, Collection, Finding, Question, Region, Report, Study, View
from .image_reading import fit, fit_boxes, fit_mask, image_shape, kind_of, read_image, to_channels
from .paths import require_root
from .splits import crossing, normalise, split_by_patient
from .wording import counted, tally

if TYPE_CHECKING:
    from torch import Tensor

CACHE_BYTES = 256 * 2**20  # of small copies kept in memory, a collection
STATUS = {1.0: PRESENT, 0.0: ABSENT, -1.0: UNCERTAIN}  # the values CheXpert's label table uses


@dataclass(frozen=True)
class ImageFile:
    """One view of a study, and where it is stored."""

    view: str
    path: Path


@dataclass(frozen=True)
class BoxRecord:
    """A box in native pixels of one view. `shape` (H, W) is the picture it was drawn on, if that is not the file."""

    label: str
    box: tuple[float, float, float, float]
    view: str = "frontal"
    shape: tuple[int, int] | None = None
    side: str | None = None


@dataclass(frozen=True)
class MaskRecord:
    """A mask stored as a picture: what is not zero is in."""

    label: str
    path: Path
    view: str = "frontal"


@dataclass(frozen=True)
class Record:
    """One study as an adaptor found it. `labels`: name -> 1 present, 0 absent, -1 uncertain; the rest is unknown."""

    identifier: str
    patient: str
    images: tuple[ImageFile, ...]
    report: Report
    labels: dict[str, float]
    boxes: tuple[BoxRecord, ...] = ()
    masks: tuple[MaskRecord, ...] = ()
    questions: tuple[Question, ...] = ()
    modality: str = "image"
    split: str | None = None
    damaged: bool = False  # the text as stored had broken characters


class FileCollection(Collection):
    """Studies in image files.

    The view "frontal" stands for the principal one: a study that has no view of that name gives its first. Small copies
    are kept in memory, eight bits a pixel, so that from the second epoch on nothing is decoded again.

    notice:   what a reader of results must know: what was left out and why, what leaks
    problems: faults met while reading the layout, one line each (strict adaptors raise instead)
    layout:   files and folders that a root of this set holds, by which it is known; none for a set without a layout
    """

    layout: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        records: Iterable[Record],
        *,
        name: str,
        root: Path,
        label_names: Sequence[str] = (),
        channels: int = 1,
        notice: str = "",
        problems: Sequence[str] = (),
        bits: int = 16,
    ):
        if channels not in (1, 3):
            raise KitError(f"channels={channels}: choose 1 (grey) or 3 (colour)")
        self.records = tuple(records)
        self.name, self.root, self.channels, self.bits = name, Path(root), channels, bits
        self.label_names, self.notice, self.problems = tuple(label_names), notice, tuple(problems)
        self._cache: OrderedDict[tuple[Path, int], Tensor] = OrderedDict()
        self._cached_bytes = 0

    def __len__(self) -> int:
        return len(self.records)

    def study(self, index: int) -> Study:
        """Study `index`. Its regions are the stored boxes; masks are read by `regions`."""
        record = self.records[index]
        return Study(
            identifier=record.identifier,
            patient=record.patient,
            views=tuple(
                View(file.view, partial(read_native, file.path, channels=self.channels, bits=self.bits))
                for file in record.images
            ),
            report=record.report,
            findings=tuple(Finding(name, STATUS[value]) for name, value in record.labels.items() if value in STATUS),
            regions=tuple(Region(box.label, box.box, side=box.side, view=box.view) for box in record.boxes),
            questions=record.questions,
            modality=record.modality,
            split=record.split,
        )

    def images(self, indices: Sequence[int], *, size: int, view: str = "frontal") -> Tensor:
        import torch

        paths = [self._file(self.records[index], view).path for index in indices]
        if not paths:
            return torch.zeros(0, self.channels, size, size)
        return torch.stack([self._small(path, size) for path in paths]).float() / 255

    def _small(self, path: Path, size: int) -> Tensor:
        """(channels, size, size) uint8, from memory if it was read before."""
        import torch

        key = (path, size)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        small = (fit(read_native(path, channels=self.channels, bits=self.bits), size) * 255).round().to(torch.uint8)
        self._cache[key] = small
        self._cached_bytes += small.numel()
        while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
            self._cached_bytes -= self._cache.popitem(last=False)[1].numel()
        return small

    def _file(self, record: Record, view: str) -> ImageFile:
        for file in record.images:
            if file.view == view:
                return file
        if view == "frontal":
            return record.images[0]
        raise KitError(
            f"study {record.identifier} of {self.name} has no view {view!r}, only "
            f"{', '.join(file.view for file in record.images)}; keep those that have it: collection.with_view({view!r})"
        )

    def with_view(self, view: str) -> Collection:
        """The studies that have this view."""
        names = {file.view for record in self.records for file in record.images}
        if view not in names:
            raise unknown("view", view, names)
        return self.subset([i for i, record in enumerate(self.records) if view in {f.view for f in record.images}])

    def labels(self, indices: Sequence[int]) -> Tensor:
        import torch

        nothing = float("nan")
        rows = [[self.records[index].labels.get(name, nothing) for name in self.label_names] for index in indices]
        table = torch.tensor(rows, dtype=torch.float32).reshape(len(rows), len(self.label_names))
        return table.masked_fill(table == -1, nothing)

    def regions(self, index: int, *, size: int, view: str = "frontal") -> tuple[Region, ...]:
        import torch

        record = self.records[index]
        file = self._file(record, view)
        regions = []
        for box in record.boxes:
            if box.view == file.view:
                native = torch.tensor([box.box], dtype=torch.float64)
                placed = fit_boxes(native, box.shape or image_shape(file.path), size)
                regions.append(Region(box.label, tuple(placed[0].tolist()), side=box.side, view=file.view))
        for mask in record.masks:
            if mask.view == file.view:
                regions.append(mask_region(mask, size))
        return tuple(regions)

    def split(self, name: str) -> Collection:
        if name not in SPLITS:
            raise unknown("split", name, SPLITS)
        return super().split(name)


def read_native(path: Path, *, channels: int, bits: int = 16) -> Tensor:
    """(channels, H, W) float32 in [0, 1] at native size."""
    return to_channels(read_image(path, bits=bits), channels)


def mask_region(mask: MaskRecord, size: int) -> Region:
    """The mask and its box in the pixels of the square picture; an empty mask has the empty box (0, 0, 0, 0)."""
    placed = fit_mask(read_image(mask.path).amax(0) > 0, size)
    rows, columns = placed.any(1).nonzero().flatten(), placed.any(0).nonzero().flatten()
    box = (0.0, 0.0, 0.0, 0.0)
    if len(rows):
        box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    return Region(mask.label, box, mask=placed, view=mask.view)


def with_splits(
    records: Sequence[Record], *, fractions: tuple[float, float, float], seed: int, by_report: bool = True
) -> list[Record]:
    """The records with splits by patient and by identical report; captions made from labels are no reason to group."""
    splits = split_by_patient(
        [record.patient for record in records],
        [record.report.text for record in records] if by_report else None,
        fractions=fractions,
        seed=seed,
    )
    return [replace(record, split=split) for record, split in zip(records, splits, strict=True)]


def leaks_of(records: Sequence[Record]) -> str:
    """One sentence on patients and reports found in several splits; "" when there are none."""
    splits = [record.split for record in records]
    patients = crossing([record.patient for record in records], splits)
    texts = crossing([normalise(record.report.text) for record in records], splits)
    if not patients and not texts:
        return ""
    return (
        f"{counted(len(patients), 'patient')} and {counted(len(texts), 'report text')} are in more than one split, so "
        "held-out results are too good."
    )


class ImageFolder(FileCollection):
    """Every image file below a folder, a study each, without reports. Files of other kinds are counted in `notice`."""

    def __init__(self, root: str | Path, *, channels: int = 1):
        root = require_root(root, "image folder")
        records, others = [], Counter()
        for path in sorted(root.rglob("*")):
            relative = path.relative_to(root)
            if any(part.startswith(".") for part in relative.parts) or not path.is_file():
                continue
            kind = kind_of(path)
            if kind is None:
                others[path.suffix.lower() or "no suffix"] += 1
                continue
            identifier = relative.as_posix()
            records.append(
                Record(identifier, identifier, (ImageFile("frontal", path),), Report(""), {}, modality=kind)
            )
        if not records:
            raise KitError(f"{root} holds no image file (PNG, JPEG, TIFF, DICOM, NIfTI, slide); check the path")
        notice = "A bare folder of images: no reports, and patients are not known."
        if others:
            notice += f" Files of other kinds, left out: {tally(others)}."
        super().__init__(records, name=root.name, root=root, channels=channels, notice=notice)
