"""LC25000, lung part (Borkowski et al., arXiv 1912.12142): histology patches of three classes.

Layout as published:  ROOT/lung_colon_image_set/lung_image_sets/{lung_aca,lung_n,lung_scc}/*.jpeg
"""

from __future__ import annotations

from pathlib import Path

from ..errors import KitError
from ..study import Report
from .captions import caption
from .files import FileCollection, ImageFile, Record, with_splits
from .paths import require_root
from .wording import counted

FOLDER = "lung_colon_image_set/lung_image_sets"
CLASSES = {
    "lung_aca": "Lung adenocarcinoma",
    "lung_n": "Benign lung tissue",
    "lung_scc": "Lung squamous cell carcinoma",
}


class Lc25000(FileCollection):
    """One study a patch; its text is a caption of its class.

    The 5,000 patches of a class are rotations and flips of about 250, and the set does not say which belong together:
    a random split leaks, so held-out results are too good. `notice` says so; `medvlp data check` finds the nearest
    copies. The classes also differ in stain.
    """

    layout = tuple(f"{FOLDER}/{name}" for name in CLASSES)

    def __init__(
        self,
        root: str | Path,
        *,
        fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
        seed: int = 0,
        channels: int = 3,
    ):
        root = require_root(root, "lc25000", *self.layout)
        records = [
            _record(path, name) for name in CLASSES for path in sorted((root / FOLDER / name).glob("*.jp*g"))
        ]
        if not records:
            raise KitError(f"{root / FOLDER} holds no .jpeg file; unpack lung_image_sets there")
        notice = f"{counted(len(records), 'patch')}. Patches are rotated and flipped copies of fewer originals, and "
        notice += "which belong together is not known: held-out results are too good. Texts are captions of the class."
        super().__init__(
            with_splits(records, fractions=fractions, seed=seed, by_report=False), name="lc25000", root=root,
            label_names=tuple(CLASSES.values()), channels=channels, notice=notice,
        )  # fmt: skip


def _record(path: Path, name: str) -> Record:
    return Record(
        identifier=path.stem,
        patient=path.stem,
        images=(ImageFile("frontal", path),),
        report=Report(caption([CLASSES[name].lower()], picture="histology patch", key=path.stem)),
        labels={label: float(other == name) for other, label in CLASSES.items()},
        modality="histology",
    )
