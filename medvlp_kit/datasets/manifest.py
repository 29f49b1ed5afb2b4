"""Your own data: one CSV or Parquet table with a row an image.

    image         path below the root (required)
    report        the whole report; may be left out where findings or impression is there
    findings, impression, language      parts of the report, and its language (en)
    labels        names of what is present, separated by ";"; "?" for not known. All names in the column are labels
    label:NAME    instead: 1 present, 0 absent, -1 uncertain, empty not known
    boxes         JSON: [{"label": "Nodule", "box": [x0, y0, x1, y1]}, ...] in pixels of the image
    mask          path of a picture that is not zero where the finding is; mask:NAME names the finding
    patient, study, view, split, modality
                  rows with the same study are views of one exam; split is train, validation or test

Without a split column, splits are made by patient and by identical report text. Row numbers in messages count as a
spreadsheet does: the header is row 1.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..errors import KitError, unknown
from ..study import SPLITS, Report
from .files import BoxRecord, FileCollection, ImageFile, MaskRecord, Record, leaks_of, with_splits
from .paths import inside
from .splits import split_name
from .wording import counted, is_damaged, mend_text

COLUMNS = (
    "image", "report", "findings", "impression", "language", "labels", "boxes", "mask", "patient", "study", "view",
    "split", "modality",
)  # fmt: skip
PREFIXES = ("label:", "mask:")
REPORTS = ("report", "findings", "impression")
LABEL_VALUES = {"1": 1.0, "True": 1.0, "0": 0.0, "False": 0.0, "-1": -1.0, "": None}
SHARED = (*REPORTS, "language", "patient", "split", "modality")  # the same, or empty, in all rows of a study


class Manifest(FileCollection):
    """The studies of a manifest; see this file's head for its columns.

    root: the folder that image and mask paths start from; the manifest's own folder if not given. ignore: names of
    columns to leave alone. strict=False lists missing files in `problems` and leaves them out, in place of an error.
    """

    def __init__(
        self,
        path: str | Path,
        root: str | Path | None = None,
        *,
        ignore: Sequence[str] = (),
        fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
        seed: int = 0,
        channels: int = 1,
        bits: int = 16,
        strict: bool = True,
    ):
        path = Path(path).expanduser()
        rows = read_rows(path, ignore=ignore)
        root = path.parent if root is None else Path(root).expanduser()
        if not root.is_dir():
            raise KitError(f"{root}: no such folder; give the folder that the paths in {path.name} start from")
        names = _label_names(rows)
        problems: list[str] = []
        exams: dict[str, list[dict[str, str]]] = {}
        for row in rows:
            if _files_are_there(row, path, root, problems):
                exams.setdefault(row.get("study") or f"row {row['row']}", []).append(row)
        if problems and strict:
            more = f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else ""
            raise KitError(f"{problems[0]}{more}; mend the path, or take the row out")
        if not exams:
            raise KitError(f"{path}: none of its {len(rows)} images is there; check root, now {root}")
        records = [_record(path, root, study, exam, names=names) for study, exam in exams.items()]
        notice = f"{counted(len(records), 'study')} from {counted(len(rows), 'row')}."
        if problems:
            notice += f" Rows left out because a file is missing: {len(problems)}."
        if "patient" not in rows[0]:
            notice += " No patient column: each study counts as a patient of its own, so leaks between splits can hide."
        if "split" not in rows[0]:
            records = with_splits(records, fractions=fractions, seed=seed)
        else:
            notice = f"{notice} {leaks_of(records)}".strip()
        super().__init__(
            records,
            name=path.stem,
            root=root,
            label_names=names,
            channels=channels,
            notice=notice,
            problems=problems,
            bits=bits,
        )


def read_rows(path: Path, *, ignore: Sequence[str] = ()) -> list[dict[str, str]]:
    """All cells as strings, "" where empty, with the row number under "row"; unknown columns are errors."""
    import pandas

    if not path.is_file():
        raise KitError(f"{path}: no such manifest; give a .csv or .parquet file")
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            table = pandas.read_parquet(path)
        elif path.suffix.lower() in (".csv", ".tsv"):
            separator = "\t" if path.suffix.lower() == ".tsv" else ","
            table = pandas.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", sep=separator)
        else:
            raise KitError(f"{path} is not a .csv, .tsv or .parquet file; save the table as one of these")
    except UnicodeDecodeError as error:
        raise KitError(f"{path} is not UTF-8 (byte {error.start}); save it again as 'CSV UTF-8'") from None
    except KitError:
        raise
    except Exception as error:  # pandas and pyarrow raise many kinds
        raise KitError(f"{path} cannot be read as a table ({error}); save it again") from None
    for column in map(str, table.columns):
        if column not in COLUMNS and column not in ignore and not _named(column):
            wrong = unknown(f"column of {path.name}", column, (*COLUMNS, "label:NAME", "mask:NAME"))
            raise KitError(f"{wrong}, or pass ignore=[{column!r}]")
    if "image" not in table.columns or not any(column in table.columns for column in REPORTS):
        has = ", ".join(map(str, table.columns))
        raise KitError(f"{path} needs a column 'image' and one of {', '.join(REPORTS)}; it has {has}")
    if not isinstance(table.index, pandas.RangeIndex):
        raise KitError(f"{path}: rows have more cells than the header; put reports that hold commas into double quotes")
    if table.empty:
        raise KitError(f"{path} has a header but no rows; add one row an image")
    kept = [column for column in table.columns if column not in ignore]
    return [
        {"row": str(number), **{column: _cell(value) for column, value in zip(kept, values, strict=True)}}
        for number, values in enumerate(table[kept].itertuples(index=False, name=None), start=2)
    ]


def _named(column: str) -> bool:
    return any(column.startswith(prefix) and column[len(prefix) :].strip() for prefix in PREFIXES)


def _cell(value: object) -> str:
    """One cell as a string: Parquet keeps numbers, lists and missing values as they are."""
    import pandas

    if not pandas.api.types.is_scalar(value):
        return json.dumps(value, default=lambda array: array.tolist())
    if pandas.isna(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _names_in(cell: str) -> list[str]:
    if cell.startswith("["):  # a list cell of a Parquet file
        try:
            return [str(name).strip() for name in json.loads(cell)]
        except ValueError:
            pass  # a name that begins with a bracket
    return [name.strip() for name in cell.split(";") if name.strip()]


def _label_names(rows: list[dict[str, str]]) -> tuple[str, ...]:
    columns = tuple(column.removeprefix("label:").strip() for column in rows[0] if column.startswith("label:"))
    if columns and "labels" in rows[0]:
        raise KitError("the manifest has both a column 'labels' and columns 'label:NAME'; keep one of the two")
    found = {name for row in rows for name in _names_in(row.get("labels", "")) if name != "?"}
    return columns or tuple(sorted(found))


def _where(path: Path, row: dict[str, str]) -> str:
    return f"{path.name}, row {row['row']}"


def _files_are_there(row: dict[str, str], path: Path, root: Path, problems: list[str]) -> bool:
    """Whether all files of the row are there; a path that leaves the root is an error in any case."""
    missing = []
    for column in ("image", *_mask_columns(row)):
        value, where = row[column], _where(path, row)
        if not value and column == "image":
            raise KitError(f"{where}: the cell 'image' is empty; give a path or take the row out")
        if not inside(root, value, where=where).is_file():
            missing.append(f"{where}: no file {value!r} in {root}")
    problems += missing
    return not missing


def _mask_columns(row: dict[str, str]) -> list[str]:
    """The columns of this row that hold the path of a mask."""
    return [column for column in row if (column == "mask" or column.startswith("mask:")) and row[column]]


def _record(path: Path, root: Path, study: str, rows: list[dict[str, str]], *, names: Sequence[str]) -> Record:
    first, where = rows[0], _where(path, rows[0])
    shared = {column: _shared(path, rows, column) for column in SHARED}
    views = [row.get("view") or "frontal" for row in rows]
    if len(set(views)) < len(views):
        raise KitError(f"{where}: study {study!r} has one view twice; name its views apart, as in 'frontal 2'")
    split = None
    if "split" in first:
        split = split_name(shared["split"])
        if split is None:
            raise KitError(f"{where}: {unknown('split', shared['split'], SPLITS)}")
    findings, impression = mend_text(shared["findings"]), mend_text(shared["impression"])
    text = mend_text(shared["report"]) or f"{findings} {impression}".strip()
    return Record(
        identifier=study,
        patient=shared["patient"] or study,
        images=tuple(
            ImageFile(view, inside(root, row["image"], where=where)) for view, row in zip(views, rows, strict=True)
        ),
        report=Report(text, findings=findings, impression=impression, language=shared["language"] or "en"),
        labels=_labels(path, rows, names),
        boxes=tuple(box for view, row in zip(views, rows, strict=True) for box in _boxes(path, row, view)),
        masks=tuple(mask for view, row in zip(views, rows, strict=True) for mask in _masks(root, row, view)),
        modality=shared["modality"] or "image",
        split=split,
        damaged=any(is_damaged(shared[column]) for column in REPORTS),
    )


def _shared(path: Path, rows: list[dict[str, str]], column: str) -> str:
    """The one value that the rows of a study have in a column."""
    values = {row[column]: row for row in rows if row.get(column)}
    if len(values) > 1:
        raise KitError(f"{_where(path, rows[-1])}: {column!r} differs from another row of its study; make them equal")
    return next(iter(values), "")


def _labels(path: Path, rows: list[dict[str, str]], names: Sequence[str]) -> dict[str, float]:
    """1, 0 or -1 by name; what is not known is left out. A name present in any row of the study is present."""
    labels: dict[str, float] = {}
    for row in rows:
        if "labels" in row:
            listed = _names_in(row["labels"])
            if "?" in listed:
                continue
            given = {name: float(name in listed) for name in names}
        else:
            given = {name: _label_value(path, row, name) for name in names}
        for name, value in given.items():
            if value is not None and (name not in labels or abs(value) > abs(labels[name]) or value == 1):
                labels[name] = value
    return labels


def _label_value(path: Path, row: dict[str, str], name: str) -> float | None:
    cell = next(value for column, value in row.items() if column.startswith("label:") and column[6:].strip() == name)
    cell = cell.removesuffix(".0")
    if cell not in LABEL_VALUES:
        raise KitError(f"{_where(path, row)}: label {name!r} is {cell!r}; write 1, 0, -1 (uncertain) or nothing")
    return LABEL_VALUES[cell]


def _boxes(path: Path, row: dict[str, str], view: str) -> list[BoxRecord]:
    cell = row.get("boxes", "")
    if not cell:
        return []
    try:
        entries = json.loads(cell)
        boxes = [BoxRecord(str(e["label"]), tuple(float(edge) for edge in e["box"]), view) for e in entries]
        for box in boxes:
            x0, y0, x1, y1 = box.box
            if not (0 <= x0 < x1 and 0 <= y0 < y1):
                raise ValueError(f"{box.box} is not x0 < x1, y0 < y1")
    except (ValueError, TypeError, KeyError) as error:
        example = '[{"label": "Nodule", "box": [x0, y0, x1, y1]}]'
        raise KitError(f"{_where(path, row)}: boxes cannot be read ({error}); write {example}") from None
    return boxes


def _masks(root: Path, row: dict[str, str], view: str) -> list[MaskRecord]:
    return [
        MaskRecord(column.removeprefix("mask:").strip(), inside(root, row[column], where=column), view)
        for column in _mask_columns(row)
    ]
