"""Image and text points of one model in one plane: where they lie, what is picked among them, how far apart they are."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..downstream.retrieval import recall_at_k
from ..errors import KitError, unknown
from ..objectives.diagnostics import modality_gap
from ..study import Collection
from . import markup

if TYPE_CHECKING:
    import pandas as pd


COLOURS = ("modality", "finding", "side", "split", "patient")
NEAREST, SIDE, GROUPS = 4, 120, 8  # neighbours shown of each modality; pixels of a thumbnail; colours that patients share
LARGE = 5_000  # studies from which on lines between pairs would hide everything, and only PCA is quick enough
NONE, SEVERAL = "none", "several"
MORE = ("#882255", "#999933", "#44AA99")  # beside the palette, for more than eight findings; also told apart by the colour-blind

Stages = Mapping[str, tuple[Tensor, Tensor]]  # name of a checkpoint -> unit embeddings of images and of texts, (N, D) each


def projections() -> tuple[str, ...]:
    """The planes that can be drawn here; UMAP needs the package umap-learn (pip install "medvlp-kit[explore]")."""
    return ("PCA", "UMAP", "t-SNE") if find_spec("umap") else ("PCA", "t-SNE")


def alignment_numbers(image: Tensor, text: Tensor, *, most: int = 2_000) -> dict[str, float]:
    """How a model's two clouds lie: the gap between their means, the cosine of pairs, and recall@5 of text -> image.

    The first `most` studies count, because recall depends on the size of the gallery.
    """
    image, text = image[:most].double(), text[:most].double()
    return {
        "gap": float(modality_gap(image, text)), "cosine of pairs": float((image * text).sum(-1).mean()),
        "recall@5": recall_at_k(text @ image.T, ks=(5,))[5],
    }  # fmt: skip


class Plane:
    """The pure functions. Points 0 to N - 1 are images, N to 2 N - 1 the texts of the same studies."""

    def __init__(self, parts: Mapping[str, Collection], stages: Stages, *, size: int):
        self.parts, self.stages, self.size = dict(parts), dict(stages), size
        self.where = [(split, index) for split, part in self.parts.items() for index in range(len(part))]
        self.count = len(self.where)
        for name, (image, text) in self.stages.items():
            if not len(image) == len(text) == self.count:
                raise KitError(f"checkpoint {name!r} has {len(image)} images and {len(text)} texts for {self.count} studies")
        self.numbers = lru_cache(maxsize=None)(lambda stage: alignment_numbers(*self.stages[stage]))
        self.coordinates = lru_cache(maxsize=32)(self._coordinates)
        self._table: pd.DataFrame | None = None

    @property
    def table(self) -> pd.DataFrame:
        """One row a point: modality, finding (the only one, "none" or "several"), side, split, patient, study."""
        if self._table is None:
            import pandas as pd

            rows = []
            for split, index in self.where:
                present = [f for f in self.parts[split].findings(index) if f.status != "absent"]
                sides = {f.side for f in present if f.side}
                rows.append((
                    NONE if not present else present[0].name if len(present) == 1 else SEVERAL,
                    NONE if not sides else sides.pop() if len(sides) == 1 else "both", split,
                ))  # fmt: skip
            patients = {}
            for split, index in self.where:
                patients.setdefault((split, patient_of(self.parts[split], index)), len(patients))
            group = [str(patients[split, patient_of(self.parts[split], index)] % GROUPS) for split, index in self.where]
            one = pd.DataFrame(rows, columns=["finding", "side", "split"]).assign(patient=group, study=range(self.count))
            both = pd.concat([one.assign(modality="image"), one.assign(modality="text")], ignore_index=True)
            self._table = both.astype({name: "category" for name in COLOURS})
        return self._table

    def tints(self, colour: str) -> dict[str, str]:
        """A colour for each category; what is no single finding or side is grey."""
        from ..figures import GREY, PALETTE

        names = [str(name) for name in self.table[colour].cat.categories]
        plain = {NONE: "#BBBBBB", SEVERAL: GREY, "both": GREY}
        rest, every = [name for name in names if name not in plain], (*PALETTE, *MORE)
        tints = plain | {name: every[i % len(every)] for i, name in enumerate(rest)}
        return {name: tints[name] for name in names}

    def _coordinates(self, stage: str, projection: str) -> np.ndarray:
        """(2 N, 2) float32. PCA's axes are those of the last checkpoint, so that a replay moves points and not the frame."""
        if stage not in self.stages:
            raise unknown("checkpoint", stage, self.stages)
        points = torch.cat(self.stages[stage]).float().numpy()
        if projection == "PCA":
            from sklearn.decomposition import PCA

            last = torch.cat(list(self.stages.values())[-1]).float().numpy()
            return PCA(2, random_state=0).fit(last).transform(points).astype(np.float32)
        if self.count > LARGE:
            raise KitError(f"{projection} of {2 * self.count:,} points takes minutes: take PCA, or at most {LARGE:,} studies")
        if projection == "t-SNE":
            from sklearn.manifold import TSNE

            return TSNE(2, init="pca", random_state=0, metric="cosine").fit_transform(points).astype(np.float32)
        if projection == "UMAP":
            if not find_spec("umap"):
                raise KitError('UMAP needs the package umap-learn: pip install "medvlp-kit[explore]"')
            import umap

            return umap.UMAP(n_components=2, metric="cosine", random_state=0, n_jobs=1).fit_transform(points).astype(np.float32)
        raise unknown("projection", projection, projections())

    def __call__(self, *, checkpoint: str, projection: str, colour: str, pairs: bool, picked: str) -> str:
        """HTML: the clouds in numbers, and what is picked: a point ("17") or what the lasso holds ("3,5,9")."""
        if checkpoint not in self.stages:
            raise unknown("checkpoint", checkpoint, self.stages)
        try:
            points = [int(number) for number in picked.split(",") if number]
        except ValueError:
            raise KitError(f"points {picked!r}: give their numbers, such as '3,5,9'") from None
        if any(not 0 <= point < 2 * self.count for point in points):
            raise KitError(f"points {picked!r}: there are 0 to {2 * self.count - 1}")
        told = self.told(checkpoint)
        if not points:
            return told + markup.note("Hover over or click a point to see its study; press the lasso and draw around many.")
        return told + (self.point(checkpoint, points[0]) if len(points) == 1 else self.group(points))

    def told(self, checkpoint: str) -> str:
        """The numbers of this checkpoint, and over all checkpoints."""
        numbers = self.numbers(checkpoint)
        gap, pairs, recall = numbers["gap"], numbers["cosine of pairs"], numbers["recall@5"]
        line = f"{checkpoint}: gap between the clouds {gap:.3f}, cosine of pairs {pairs:.3f}, recall@5 of an image {recall:.1%}."
        if len(self.stages) < 3:
            return markup.note(line)
        names = list(self.stages)
        steps = range(len(names))
        every = [self.numbers(name) for name in names]
        series = {key: (steps, [each[key] for each in every]) for key in ("gap", "cosine of pairs", "recall@5")}
        place = names.index(checkpoint)
        chart = markup.lines(
            series, alt=f"Gap, cosine of pairs and recall over {len(names)} checkpoints; shown is {checkpoint}",
            x_label="checkpoint", marks=[(place, every[place][key]) for key in series],
        )  # fmt: skip
        return markup.note(line) + chart

    def point(self, checkpoint: str, point: int) -> str:
        """The study of a point, its report, and what lies nearest in both modalities."""
        study, is_text = point % self.count, point >= self.count
        image, text = self.stages[checkpoint]
        own = (text if is_text else image)[study]
        kind = "text" if is_text else "image"
        parts = [markup.row(self.thumbnail(study), f'<div style="max-width:34em">{self.report(study, kind)}</div>')]
        for name, cloud in (("images", image), ("texts", text)):
            scores = cloud @ own
            if (name == "texts") == is_text:
                scores[study] = -2.0  # itself is no neighbour
            best = scores.topk(min(NEAREST, self.count - 1))
            if name == "images":
                tiles = [self.thumbnail(int(i), f"{float(s):.3f}") for s, i in zip(best.values, best.indices)]
                parts += [markup.note("Nearest images:"), markup.row(*tiles)]
            else:
                rows = [[float(s), self.impression(int(i))] for s, i in zip(best.values, best.indices)]
                parts.append(markup.table(["cosine", "text"], rows, caption="Nearest texts:"))
        return "".join(parts)

    def group(self, points: list[int]) -> str:
        """What is inside a lasso: how often each finding, against its share among all."""
        inside, every = self.table.iloc[points], self.table
        images = int((inside["modality"] == "image").sum())
        head = f"{len(points)} points: {images} images and {len(points) - images} texts of {inside['study'].nunique()} studies."
        counts, all_counts = inside["finding"].value_counts(), every["finding"].value_counts(normalize=True)
        rows = [
            [name, int(count), f"{count / len(points):.0%}", f"{all_counts[name]:.0%}"] for name, count in counts.items() if count
        ]
        table = markup.table(["finding", "points", "share inside", "share of all"], rows, caption="Findings inside:")
        sides = inside["side"].value_counts()
        return markup.note(head) + table + markup.note("Sides: " + ", ".join(f"{n} {int(c)}" for n, c in sides.items() if c) + ".")

    @lru_cache(maxsize=256)  # noqa: B019  (one explorer on a page)
    def thumbnail(self, study: int, score: str = "") -> str:
        split, index = self.where[study]
        names = ", ".join(f.name.lower() for f in self.parts[split].findings(index) if f.status != "absent") or "no finding"
        picture = self.parts[split].images([index], size=self.size)[0]
        caption = f"{score}: {names}" if score else f"study {study} ({split}): {names}"
        return markup.tile(picture, side=SIDE, alt=f"Radiograph of study {study} with {names}", caption=caption)

    def report(self, study: int, kind: str) -> str:
        split, index = self.where[study]
        return markup.note(f"The {kind} of this study. Its report:") + markup.note(self.parts[split].report(index).text)

    def impression(self, study: int) -> str:
        split, index = self.where[study]
        report = self.parts[split].report(index)
        return report.impression or report.text

    def still(self, checkpoint: str, projection: str, colour: str) -> str:
        """The plane as a picture, for pages without a kernel."""
        from PIL import Image, ImageDraw

        xy, labels = self.coordinates(checkpoint, projection), self.table[colour].astype(str)
        low, high = xy.min(0), xy.max(0)
        places = (xy - low) / np.maximum(high - low, 1e-9) * [500, 300] + 10
        picture = Image.new("RGB", (520, 320), "white")
        pen = ImageDraw.Draw(picture)
        tint = self.tints(colour)
        for (x, y), label in zip(places, labels):
            pen.ellipse((x - 2, 318 - y, x + 2, 322 - y), fill=tint[label])
        for line, name in enumerate(tint):
            pen.rectangle((8, 8 + 14 * line, 16, 16 + 14 * line), fill=tint[name])
            pen.text((20, 6 + 14 * line), name, fill="#222222")
        told = ", ".join(tint)
        return markup.figure(
            picture, alt=f"Image and text points in the plane of {projection}, coloured by {colour}: {told}",
            caption=f"{checkpoint}, {projection}, coloured by {colour}",
        )  # fmt: skip


def patient_of(collection: Collection, index: int) -> str:
    """Who a study is of; a study of its own where the collection does not say."""
    scene = getattr(collection, "scene", None)
    return scene(index).patient if scene is not None else collection.study(index).patient
