"""Real studies: one adaptor a layout, a manifest for your own, and the phantoms under the same call.

    collection = load("covid-chestxray", "DATA/covid-chestxray", split="train")
    collection = load("manifest", "my_hospital/manifest.csv")
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import KitError, unknown
from ..study import SPLITS, Collection

if TYPE_CHECKING:
    import pandas

# name: (module of this package, class). Imported when asked for: listing the names must not import torch.
ADAPTORS = {
    "bccd": ("bccd", "Bccd"),
    "covid-chestxray": ("covid_chestxray", "CovidChestXray"),
    "dsb2018-nuclei": ("nuclei", "Nuclei"),
    "lc25000": ("lc25000", "Lc25000"),
    "manifest": ("manifest", "Manifest"),
    "vqa-rad": ("vqa_rad", "VqaRad"),
}
PHANTOMS = "phantoms"


def names() -> tuple[str, ...]:
    """What `load` knows."""
    return tuple(sorted((*ADAPTORS, PHANTOMS)))


def known(name: str) -> str:
    """The name as the kit writes it: case and underscores are forgiven, anything else is an error."""
    plain = str(name).strip().lower().replace("_", "-")
    if plain not in names():
        raise unknown("data set", name, names())
    return plain


def load(name: str, root: str | Path | None = None, *, split: str | None = None, **options) -> Collection:
    """A collection by name.

    root: the data set's folder; for "manifest" the table, or a folder with manifest.csv or manifest.parquet in it; none
    for "phantoms". split: only this part. options go to the class (`CovidChestXray`, `VqaRad`, `Manifest`, `Phantoms`);
    the folder that a manifest's paths start from is `image_root`.
    """
    name = known(name)
    if split is not None and split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if name == PHANTOMS:
        return _phantoms(root, split, options)
    made = adaptor(name)
    _check_options(made, name, options)
    if name == "manifest":
        collection = made(find_manifest(root), options.pop("image_root", None), **options)
    else:
        collection = made(root, **options)
    if split is None:
        return collection
    part = collection.split(split)
    if not len(part):
        raise KitError(f"{name} has no study in split {split!r}; choose another split or other fractions")
    return part


def adaptor(name: str) -> type:
    """The class that reads the layout of this name."""
    module, class_name = ADAPTORS[name]
    return getattr(import_module(f"{__name__}.{module}"), class_name)


def _phantoms(root: str | Path | None, split: str | None, options: dict) -> Collection:
    from ..budget import budget
    from ..phantoms import Phantoms

    if root is not None:
        raise KitError(f"phantoms are drawn, not read: leave out the folder {str(root)!r}")
    _check_options(Phantoms, PHANTOMS, options)
    size = options.pop("size", None)
    if size is None:
        sizes = budget()
        size = sizes.train_studies if split in (None, "train") else sizes.test_studies
    return Phantoms(size, split=split, **options)


def _check_options(adaptor: type, name: str, options: dict) -> None:
    from inspect import signature

    allowed = {option for option in signature(adaptor).parameters if option not in ("path", "root", "split")}
    allowed |= {"image_root"} if name == "manifest" else set()
    for option in options:
        if option not in allowed:
            raise unknown(f"option of data set {name!r}", option, allowed)


def find_manifest(path: str | Path | None) -> Path:
    """The table itself, or manifest.csv / manifest.parquet in the folder given."""
    if path is None:
        raise KitError("data 'manifest' needs its table: give --root FILE.csv (or root=...)")
    path = Path(path).expanduser()
    if path.is_dir():
        for name in ("manifest.csv", "manifest.parquet", "manifest.tsv"):
            if (path / name).is_file():
                return path / name
        raise KitError(f"{path} holds no manifest.csv or manifest.parquet; name the table itself")
    return path


def describe() -> pandas.DataFrame:
    """One row a data set, for `medvlp data list`."""
    import pandas

    columns = ("name", "what", "layout", "text", "licence", "source")
    rows = (
        (
            "phantoms",
            "teaching phantoms of chest radiographs with exact truth",
            "none: drawn when asked for",
            "generated reports",
            "as the kit",
            "built in",
        ),
        (
            "covid-chestxray",
            "chest radiographs and CT slices of published cases",
            "ROOT/metadata.csv, ROOT/images/, ROOT/annotations/",
            "clinical notes",
            "a licence each picture; table CC BY-NC-SA 4.0",
            "github.com/ieee8023/covid-chestxray-dataset",
        ),
        (
            "vqa-rad",
            "radiographs, CT and MR slices with questions",
            'ROOT/"VQA_RAD Dataset Public.json", ROOT/"VQA_RAD Image Folder"/',
            "questions with answers",
            "CC0 1.0",
            "osf.io/89kps",
        ),
        (
            "bccd",
            "blood smears with boxes around cells",
            "ROOT/BCCD/JPEGImages/, ROOT/BCCD/Annotations/, ROOT/BCCD/ImageSets/Main/",
            "captions made from counts",
            "MIT",
            "github.com/Shenggan/BCCD_Dataset",
        ),
        (
            "dsb2018-nuclei",
            "microscopy fields with a mask for each nucleus",
            "ROOT/stage1_train/ID/images/, ROOT/stage1_train/ID/masks/",
            "captions made from counts",
            "CC0 1.0",
            "bbbc.broadinstitute.org/BBBC038",
        ),
        (
            "lc25000",
            "histology patches of the lung in three classes",
            "ROOT/lung_colon_image_set/lung_image_sets/",
            "captions made from classes",
            "as stated by the authors, arXiv 1912.12142",
            "github.com/tampapath/lung_colon_image_set",
        ),
        (
            "manifest",
            "your own images and reports",
            "a CSV or Parquet table with columns image, report, ...",
            "reports",
            "yours",
            "medvlp_kit.datasets.manifest",
        ),
    )
    return pandas.DataFrame(rows, columns=columns)
