"""Data Science Bowl 2018, stage 1 (BBBC038, Caicedo et al., Nature Methods 2019; CC0): a mask for each nucleus.

Layout as published:  ROOT/stage1_train/ID/images/ID.png and ROOT/stage1_train/ID/masks/*.png
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ..errors import KitError
from ..study import Report
from .captions import count_caption
from .files import FileCollection, ImageFile, MaskRecord, Record, with_splits
from .paths import require_root
from .wording import counted, tally

FOLDER, NUCLEUS = "stage1_train", "Nucleus"


class Nuclei(FileCollection):
    """One study a field of view; its text is a caption of the counted nuclei, its regions are their masks.

    Specimens are not known: crops of one slide may lie in several splits, and `notice` says so. Every picture has
    nuclei, so the set serves grounding, segmentation and counting, not the classification of pictures.
    """

    layout = (FOLDER,)

    def __init__(
        self,
        root: str | Path,
        *,
        fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
        seed: int = 0,
        channels: int = 3,
    ):
        root = require_root(root, "dsb2018-nuclei", *self.layout)
        dropped: Counter[str] = Counter()
        records, problems = [], []
        for folder in sorted(path for path in (root / FOLDER).iterdir() if path.is_dir()):
            picture = folder / "images" / f"{folder.name}.png"
            masks = sorted((folder / "masks").glob("*.png"))
            for there, reason in ((picture.is_file(), "picture missing"), (masks, "without masks")):
                if not there:
                    dropped[f"field {reason}"] += 1
                    problems.append(f"{FOLDER}/{folder.name}: {reason}")
                    break
            else:
                records.append(_record(picture, masks))
        if not records:
            raise KitError(f"{root / FOLDER} holds no ID/images/ID.png with masks; unpack stage1_train there")
        notice = f"{counted(len(records), 'field')} of view, {counted(sum(len(r.masks) for r in records), 'mask')}. "
        notice += "Specimens are not known, so splits may share them; texts are captions made from the counts."
        if dropped:
            notice += f" Left out: {tally(dropped)}."
        super().__init__(
            with_splits(records, fractions=fractions, seed=seed, by_report=False), name="dsb2018-nuclei", root=root,
            label_names=(NUCLEUS,), channels=channels, notice=notice, problems=problems,
        )  # fmt: skip


def _record(picture: Path, masks: list[Path]) -> Record:
    return Record(
        identifier=picture.stem,
        patient=picture.stem,
        images=(ImageFile("frontal", picture),),
        report=Report(count_caption({NUCLEUS.lower(): len(masks)}, picture="microscopy field", key=picture.stem)),
        labels={NUCLEUS: 1.0},
        masks=tuple(MaskRecord(NUCLEUS, mask) for mask in masks),
        modality="microscopy",
    )
