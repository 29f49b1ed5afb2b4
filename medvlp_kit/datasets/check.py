"""What is wrong with a data set, before a model learns it: leaks, duplicates, empty reports, unreadable files.

`check` reads every file once and never stops at the first fault. Of DICOM headers it reports the names of tags that can
identify a person, never their values.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import KitError
from . import ADAPTORS, adaptor, find_manifest, known, load
from .fault import ERROR, NOTE, WARNING, CheckReport, Fault
from .files import FileCollection, ImageFolder
from .image_reading import kind_of
from .look import Seen, look, near_pairs
from .paths import require_root
from .splits import crossing, normalise
from .wording import counted

if TYPE_CHECKING:
    import pandas

BLANK = 0.02  # range of values below which a picture shows nothing
DARK = 0.1  # a deep picture that never gets brighter was probably kept in fewer bits
TINY = 32  # pixels
READERS = 4  # threads; decoders release the interpreter's lock


def check_root(
    root: str | Path, data: str | None = None, manifest: str | Path | None = None, **options
) -> CheckReport:
    """Check a folder.

    data: the name of its layout; manifest: a table whose paths start at root; with neither, the layout is guessed.
    Faults are listed; only a folder, table or name that cannot be read at all is an error.
    """
    if manifest is not None:
        return check(load("manifest", manifest, image_root=root, strict=False, **options))
    root = Path(root).expanduser()
    if data is None and root.is_file():
        data = "manifest"
    name = known(data) if data is not None else guess_layout(root)
    if name == "manifest":
        return check(load(name, find_manifest(root), strict=False, **options))
    return check(ImageFolder(root, **options) if name == "folder" else load(name, root, **options))


def guess_layout(root: str | Path) -> str:
    """The name of the data set that a folder looks like; "folder" when it is none of them."""
    root = require_root(root, "data")
    for name in ADAPTORS:
        layout = adaptor(name).layout
        if layout and all((root / item).exists() for item in layout):
            return name
    try:
        find_manifest(root)
    except KitError:
        return "folder"
    return "manifest"


def check(collection: FileCollection) -> CheckReport:
    """Read all files of a collection and compare all its studies. Of volumes the middle slice is looked at."""
    if not isinstance(collection, FileCollection):
        raise KitError(f"{type(collection).__name__} is not on disk: there is nothing to check; give a folder")
    owners: dict[Path, list[int]] = defaultdict(list)  # file -> studies
    for index, record in enumerate(collection.records):
        for image in record.images:
            owners[image.path].append(index)
    masks = {mask.path for record in collection.records for mask in record.masks}
    with ThreadPoolExecutor(READERS) as pool:
        seen = list(pool.map(lambda path: look(path, collection.bits), owners))
        masks_seen = list(pool.map(lambda path: look(path, 16), sorted(masks - set(owners))))
    readable = [each for each in seen if not each.error]
    bare = isinstance(collection, ImageFolder)
    faults = [
        *_unreadable(collection, seen + masks_seen),
        *_leaks(collection),
        *_duplicates(collection, readable, owners, bare=bare),
        *([] if bare else _reports(collection)),
        *_pictures(collection, readable),
        *_headers(collection, readable),
        *_boxes_outside(collection, readable),
    ]
    order = (ERROR, WARNING, NOTE)
    return CheckReport(
        name=collection.name,
        root=str(collection.root),
        studies=len(collection),
        files=len(seen) + len(masks_seen),
        faults=tuple(sorted(faults, key=lambda fault: order.index(fault.severity))),
        tables={"Pictures": _size_table(readable), "Studies": _study_table(collection)},
        notice=collection.notice,
    )


def _name(collection: FileCollection, path: Path) -> str:
    return path.relative_to(collection.root).as_posix() if path.is_relative_to(collection.root) else str(path)


def _unreadable(collection: FileCollection, seen: Sequence[Seen]) -> list[Fault]:
    bad = tuple(each.error for each in seen if each.error)
    faults = [Fault("missing", ERROR, f"{counted(len(collection.problems), 'row')} without a file or text",
                    collection.problems)] if collection.problems else []  # fmt: skip
    if bad:
        faults.append(Fault("unreadable", ERROR, f"{counted(len(bad), 'file')} cannot be read", bad))
    return faults


def _leaks(collection: FileCollection) -> list[Fault]:
    splits = [record.split for record in collection.records]
    faults = []
    patients = crossing([record.patient for record in collection.records], splits)
    if patients:
        where = tuple(f"{patient}: {', '.join(sorted(found))}" for patient, found in patients.items())
        message = f"{counted(len(patients), 'patient')} in more than one split; split by patient"
        faults.append(Fault("patient leak", ERROR, message, where))
    texts = [normalise(record.report.text) for record in collection.records]
    shared = crossing(texts, splits)
    if shared:
        where = tuple(_studies_with(collection, texts, text) for text in shared)
        message = f"{counted(len(shared), 'report text')} in more than one split; keep equal reports together"
        faults.append(Fault("report leak", ERROR, message, where))
    return faults


def _studies_with(collection: FileCollection, texts: Sequence[str], text: str) -> str:
    found = [f"{r.identifier} ({r.split})" for r, other in zip(collection.records, texts, strict=True) if other == text]
    return ", ".join(found[:6]) + (f", ... {len(found)} in all" if len(found) > 6 else "")


def _duplicates(
    collection: FileCollection, seen: Sequence[Seen], owners: dict[Path, list[int]], *, bare: bool
) -> list[Fault]:
    groups = defaultdict(list)
    for each in seen:
        groups[each.exact].append(each.path)
    exact = [group for group in groups.values() if len(group) > 1]
    faults = _duplicate_faults(collection, "duplicate", "with the same pixels", exact, owners, bare=bare)
    one_each = [each for each in seen if groups[each.exact][0] == each.path]
    near = []
    if len(one_each) > 1:
        hashes = np.stack([each.difference for each in one_each])
        near = [[one_each[i].path, one_each[j].path] for i, j, _ in near_pairs(hashes)]
    how = "that look nearly the same"
    return faults + _duplicate_faults(collection, "near duplicate", how, near, owners, bare=bare)


def _duplicate_faults(
    collection: FileCollection,
    kind: str,
    how: str,
    groups: list[list[Path]],
    owners: dict[Path, list[int]],
    *,
    bare: bool,
) -> list[Fault]:
    """Duplicates over splits are errors, over patients warnings, within one patient notes."""
    found = defaultdict(list)
    for group in groups:
        records = [collection.records[index] for path in group for index in owners[path]]
        line = " = ".join(_name(collection, path) for path in group)
        if len({record.split for record in records} - {None}) > 1:
            severity = ERROR if kind == "duplicate" else WARNING
            found[severity, ", in different splits"].append(line)
        elif len({record.patient for record in records}) > 1 and not bare:
            found[WARNING, ", of different patients"].append(line)
        else:
            found[NOTE, ""].append(line)
    return [
        Fault(kind, severity, f"{counted(len(lines), 'group')} of pictures {how}{of}", tuple(lines))
        for (severity, of), lines in found.items()
    ]


def _reports(collection: FileCollection) -> list[Fault]:
    records = collection.records
    empty = tuple(r.identifier for r in records if not normalise(r.report.text))
    odd = tuple(r.identifier for r in records if r.damaged)
    counts = Counter(normalise(r.report.text) for r in records if normalise(r.report.text))
    again = tuple(f"{count} studies: {text[:60]}..." for text, count in counts.most_common() if count > 1)
    faults = []
    if empty:
        faults.append(Fault("empty report", ERROR, f"{counted(len(empty), 'study')} without a word of text", empty))
    if odd:
        faults.append(Fault("encoding", WARNING, f"{counted(len(odd), 'report')} with broken characters", odd))
    if again:
        message = f"{counted(len(again), 'text')} shared by several studies: false negatives of a contrastive loss"
        faults.append(Fault("repeated report", NOTE, message, again))
    return faults


def _pictures(collection: FileCollection, seen: Sequence[Seen]) -> list[Fault]:
    blank = tuple(_name(collection, each.path) for each in seen if each.high - each.low < BLANK)
    tiny = tuple(_name(collection, each.path) for each in seen if min(each.height, each.width) < TINY)
    dark = tuple(_name(collection, each.path) for each in seen if BLANK <= each.high - each.low and each.high < DARK)
    faults = []
    if blank:
        faults.append(Fault("blank", WARNING, f"{counted(len(blank), 'picture')} of one value", blank))
    if dark:
        message = f"{counted(len(dark), 'picture')} nearly black; 12-bit values kept in 16? pass bits=12"
        faults.append(Fault("dark", WARNING, message, dark))
    if tiny:
        faults.append(Fault("tiny", WARNING, f"{counted(len(tiny), 'picture')} below {TINY} pixels a side", tiny))
    return faults


def _headers(collection: FileCollection, seen: Sequence[Seen]) -> list[Fault]:
    tagged = tuple(f"{_name(collection, each.path)}: {', '.join(each.tags)}" for each in seen if each.tags)
    burnt = tuple(_name(collection, each.path) for each in seen if each.burnt_in == "YES")
    silent = tuple(_name(collection, each.path) for each in seen if each.burnt_in == "NOT STATED")
    faults = []
    if tagged:
        message = f"{counted(len(tagged), 'DICOM file')} with tags that can identify a person; empty them at the source"
        faults.append(Fault("identifying tags", WARNING, message, tagged))
    if burnt:
        message = f"{counted(len(burnt), 'DICOM file')} with text in the pixels, which may name a person"
        faults.append(Fault("burnt-in text", WARNING, message, burnt))
    if silent:
        message = f"{counted(len(silent), 'DICOM file')} do not say whether text is in the pixels; look at some"
        faults.append(Fault("burnt-in text", NOTE, message, silent))
    return faults


def _boxes_outside(collection: FileCollection, seen: Sequence[Seen]) -> list[Fault]:
    shapes = {each.path: (each.height, each.width) for each in seen}
    outside = []
    for record in collection.records:
        for box in record.boxes:
            path = next((image.path for image in record.images if image.view == box.view), None)
            height, width = box.shape or shapes.get(path, (float("inf"), float("inf")))
            if box.box[2] > width + 1 or box.box[3] > height + 1:
                outside.append(f"{record.identifier}: {box.label} {box.box}")
    if not outside:
        return []
    return [Fault("box outside", ERROR, f"{counted(len(outside), 'box')} beyond the picture", tuple(outside))]


def _size_table(seen: Sequence[Seen]) -> pandas.DataFrame:
    import pandas

    table = pandas.DataFrame(
        {
            "type": [each.path.suffix.lower().lstrip(".") or kind_of(each.path) for each in seen],
            "channels": [each.channels for each in seen],
            "width": [each.width for each in seen],
            "height": [each.height for each in seen],
        }
    )
    if table.empty:
        return table
    groups = table.groupby(["type", "channels"])
    return groups.agg(
        files=("width", "size"),
        width_min=("width", "min"),
        width_median=("width", "median"),
        width_max=("width", "max"),
        height_min=("height", "min"),
        height_median=("height", "median"),
        height_max=("height", "max"),
    ).reset_index()


def _study_table(collection: FileCollection) -> pandas.DataFrame:
    import pandas

    rows = [
        (record.modality, image.view, record.split or "-", record.patient, len(record.report.text.split()))
        for record in collection.records
        for image in record.images
    ]
    table = pandas.DataFrame(rows, columns=("modality", "view", "split", "patient", "words"))
    groups = table.groupby(["modality", "view", "split"])
    return groups.agg(
        pictures=("patient", "size"), patients=("patient", "nunique"), words_median=("words", "median")
    ).reset_index()
