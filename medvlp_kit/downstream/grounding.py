"""Grounding: does the similarity map of a phrase point at what the phrase names?

Boxes are (x0, y0, x1, y1) in pixels, half-open: a pixel belongs to a box when its centre does. Everywhere, `heatmap`
is (H, W) or (B, H, W), and NaN pixels (padding, outside the field of view) take no part. `boxes` of one heatmap are
(4,) or (K, 4), of which the union counts, or a mask (H, W) bool; of B heatmaps, a sequence of B such or (B, H, W) bool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from ..budget import Budget
from ..encoders.features import ImageFeatures
from ..errors import KitError
from ..phantoms.scene import FINDINGS, SIDED
from ..study import Collection, Tokenizer, Tokens
from .encode import Examination, device_of, evaluating, image_to, images_at, mean_embedding
from .intervals import bootstrap_mean
from .prompts import normal_statements, phrases, wording
from .result import Estimate, Result

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
TIE = 1e-6  # of the map's range: bilinear up-sampling leaves plateaus whose pixels differ by rounding alone


def box_mask(boxes, *, height: int, width: int) -> Tensor:
    """The union of boxes (4,) or (K, 4) as a mask (H, W) bool."""
    boxes = torch.as_tensor(boxes, dtype=torch.float64).reshape(-1, 4, 1)  # (K, 4, 1)
    x, y = torch.arange(width) + 0.5, torch.arange(height) + 0.5  # pixel centres
    across = (boxes[:, 0] <= x) & (x < boxes[:, 2])  # (K, W)
    down = (boxes[:, 1] <= y) & (y < boxes[:, 3])  # (K, H)
    return (down[:, :, None] & across[:, None, :]).any(0)


def _prepared(heatmap, boxes) -> tuple[Tensor, Tensor, Tensor, bool]:
    """heatmap (B, H, W) float64, inside (B, H, W) bool, valid (B, H, W) bool, and whether there was a batch."""
    heatmap = torch.as_tensor(heatmap).detach().double().cpu()
    batched = heatmap.ndim == 3
    if heatmap.ndim not in (2, 3):
        raise KitError(f"a heatmap is (H, W) or (B, H, W), got {tuple(heatmap.shape)}")
    maps = heatmap if batched else heatmap[None]
    count, height, width = maps.shape
    if isinstance(boxes, Tensor) and boxes.dtype == torch.bool:
        inside = boxes.cpu() if batched else boxes.cpu()[None]
    else:
        each = list(boxes) if batched else [boxes]
        if len(each) != count:
            raise KitError(f"boxes for {len(each)} heatmaps, but there are {count}: give one entry to each heatmap")
        inside = torch.stack([box_mask(box, height=height, width=width) for box in each]) if each else maps.bool()
    if inside.shape != maps.shape:
        raise KitError(f"masks {tuple(inside.shape)} and heatmaps {tuple(maps.shape)} differ in shape")
    valid = ~maps.isnan()
    return maps, inside & valid, valid, batched


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """(B,) means of (B, H, W) over `where`; NaN where it is empty."""
    return torch.where(where, values, 0).sum((1, 2)) / where.sum((1, 2))


def contrast_to_noise(heatmap, box, *, signed: bool = True) -> Tensor:
    """CNR = (mean inside - mean outside) / sqrt(var inside + var outside), () or (B,) float64.

    Population variances, the raw heatmap (CNR does not change when it is scaled or shifted); `signed=False` takes the
    absolute difference, as written in BioViL (Boecking et al. 2022), and so rewards a map that points away. NaN when
    no pixel is inside or none outside; 0 for a constant map.
    """
    maps, inside, valid, batched = _prepared(heatmap, box)
    outside = valid & ~inside
    inner, outer = _mean(maps, inside), _mean(maps, outside)
    spread = _mean((maps - inner[:, None, None]) ** 2, inside) + _mean((maps - outer[:, None, None]) ** 2, outside)
    difference = inner - outer if signed else (inner - outer).abs()
    ratio = torch.where(difference == 0, difference, difference / spread.sqrt())
    return ratio if batched else ratio[0]


def rescaled(heatmap: Tensor) -> Tensor:
    """(B, H, W) with each map's minimum at -1 and maximum at 1, NaN kept; a constant map becomes 0."""
    low = heatmap.nan_to_num(nan=torch.inf).amin((1, 2), keepdim=True)
    high = heatmap.nan_to_num(nan=-torch.inf).amax((1, 2), keepdim=True)
    span = high - low
    return torch.where(span > 0, 2 * (heatmap - low) / span - 1, heatmap * 0)


def mean_iou(heatmap, boxes, *, thresholds: Sequence[float] = THRESHOLDS) -> Tensor:
    """The mean over thresholds of the IoU between {rescaled heatmap > threshold} and the boxes, () or (B,) float64.

    Each map is rescaled to [-1, 1] by its own extremes. An empty prediction has IoU 0; no pixel in a box gives NaN.
    """
    maps, inside, valid, batched = _prepared(heatmap, boxes)
    maps = rescaled(maps)
    total = torch.zeros(len(maps), dtype=torch.float64)
    for threshold in thresholds:
        chosen = (maps > threshold) & valid
        total += (chosen & inside).sum((1, 2)) / (chosen | inside).sum((1, 2))
    total = torch.where(inside.any(2).any(1), total / len(thresholds), torch.nan)
    return total if batched else total[0]


def pointing_game(heatmap, boxes) -> Tensor:
    """1 when the heatmap's maximum lies in a box, else 0; () or (B,) float64. Zhang et al. 2016, without a margin.

    Where several pixels share the maximum, the share of them in a box: the expected hit of a random choice. So a
    constant map scores the share of the picture that the boxes cover, not whatever lies in the top left corner.
    NaN when no pixel is in a box.
    """
    maps, inside, valid, batched = _prepared(heatmap, boxes)
    maps = rescaled(maps)
    peak = maps.nan_to_num(nan=-torch.inf).amax((1, 2), keepdim=True)
    best = (maps >= peak - 2 * TIE) & valid
    hit = _mean(inside.double(), best)
    hit = torch.where(inside.any(2).any(1), hit, torch.nan)
    return hit if batched else hit[0]


def patch_similarity(patches: Tensor, text: Tensor, grid: tuple[int, int], *, size: int | tuple[int, int]) -> Tensor:
    """Cosine of each patch (B, N, D) with its image's text (B, D), both unit vectors, up-sampled to (B, H, W).

    Bilinear, with the centre of a patch where it lies in the picture (align_corners=False).
    """
    maps = torch.einsum("bnd,bd->bn", patches, text).reshape(len(patches), 1, *grid)  # (B, 1, h, w)
    size = (size, size) if isinstance(size, int) else tuple(size)
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)[:, 0]


def similarity_map(model, images: Tensor | ImageFeatures, tokens: Tokens | Tensor, *, size=None) -> Tensor:
    """The map of each image with its own text: cosine of patch and text embeddings, (B, H, W) in [-1, 1].

    images: (B, C, H, W), or ImageFeatures when they are encoded already (then give `size`, pixels)
    tokens: Tokens of B texts, or their unit embeddings (B, D)
    """
    image, text, size = _pairs(model, images, tokens, size)
    with evaluating(model):
        return patch_similarity(model.embed_patches(image), text, image.grid, size=size).float().cpu()


def contribution_map(
    model, images: Tensor | ImageFeatures, tokens: Tokens | Tensor, *, against: Tokens | Tensor, size=None
) -> Tensor:
    """What each patch adds to the preference for a text over another, (B, H, W), up-sampled bilinearly.

    map_n = <p_n, t - a>, with p_n the projected patch, not normalised, and t, a the unit embeddings of the text and of
    `against` (one text, such as a normal report, or B). With average pooling and a linear head the mean of the map is
    the zero-shot score <v, t> - <v, a> times the length of the pooled projection (class activation maps, Zhou 2016);
    with other heads it is an approximation. The background, equally near to both texts, cancels.
    """
    image, text, size = _pairs(model, images, tokens, size)
    device = device_of(model)
    with evaluating(model):
        other = against.to(device)
        other = other if isinstance(other, Tensor) else model.embed_text(model.encode_text(other))  # (1 or B, D)
        return patch_similarity(model.project_patches(image), text - other, image.grid, size=size).float().cpu()


def _pairs(model, images: Tensor | ImageFeatures, tokens: Tokens | Tensor, size):
    """Features of the images, unit embeddings of their texts, and the size of the maps; checked."""
    device = device_of(model)
    if isinstance(images, Tensor):
        size = size or tuple(images.shape[-2:])
    elif size is None:
        raise KitError("a map of encoded images needs size=, the pixels of the map's side")
    with evaluating(model):
        image = model.encode_image(images.to(device)) if isinstance(images, Tensor) else image_to(images, device)
        text = tokens.to(device)
        text = text if isinstance(text, Tensor) else model.embed_text(model.encode_text(text))  # (B, D)
    if len(text) != len(image.pooled):
        raise KitError(f"{len(image.pooled)} images and {len(text)} texts: give one text to each image")
    return image, text, size


def centre_prior(size: int | tuple[int, int], *, width: float = 0.25) -> Tensor:
    """A Gaussian at the picture's centre, (H, W), `width` its deviation in picture sides: knows no image, no phrase."""
    height, across = (size, size) if isinstance(size, int) else size
    y = ((torch.arange(height) + 0.5) / height - 0.5) / width
    x = ((torch.arange(across) + 0.5) / across - 0.5) / width
    return torch.exp(-(y[:, None] ** 2 + x**2) / 2)


class Cases:
    """What is to be found in a collection: one case for each study, finding and side that has a region.

    Of the kit's findings, those that reports name without a side (edema) are one case, both sides together.

    studies (K,) int: whose image; labels, sides: of what; boxes: (k, 4) each, several where a finding is in pieces
    """

    def __init__(self, collection: Collection, *, size: int, view: str = "frontal"):
        found: dict[tuple, list] = {}
        for i in range(len(collection)):
            for region in collection.regions(i, size=size, view=view):
                if region.view == view:
                    side = None if region.label in FINDINGS and region.label not in SIDED else region.side
                    found.setdefault((i, region.label, side), []).append(region.box)
        self.studies = np.array([study for study, _, _ in found], dtype=int)
        self.labels = [label for _, label, _ in found]
        self.sides = [side for _, _, side in found]
        self.boxes = [torch.tensor(boxes, dtype=torch.float64) for boxes in found.values()]

    def __len__(self) -> int:
        return len(self.boxes)

    def wordings(self, kind: str = "lexicon") -> dict[tuple[str, str | None], list[str]]:
        """The sentences that name each (finding, side) there is."""
        return {case: phrases(case[0], side=case[1], kind=kind) for case in dict.fromkeys(zip(self.labels, self.sides))}


def phrase_maps(
    exam: Examination, cases: Cases, *, kind: str = "lexicon", order: np.ndarray | None = None
) -> Callable[[np.ndarray], Tensor]:
    """A function that gives the contribution maps (k, H, W) of some cases: each phrase against normal statements.

    order: whose phrase each case gets (K,), its own when None; a permutation is the control of shuffled phrases.
    """
    means = {case: mean_embedding(exam.model, exam.prompts(texts)) for case, texts in cases.wordings(kind).items()}
    normal = mean_embedding(exam.model, exam.prompts(normal_statements()))[None]  # (1, D)
    names = list(zip(cases.labels, cases.sides))
    embedded = torch.stack([means[names[k]] for k in (range(len(cases)) if order is None else order)])  # (K, D)

    def maps(rows: np.ndarray) -> Tensor:
        image = images_at(exam.encoded.image, torch.from_numpy(cases.studies[rows]))
        return contribution_map(exam.model, image, embedded[rows], against=normal, size=exam.budget.image_size)

    return maps


def score_maps(maps, cases: Cases, *, chunk: int = 128) -> np.ndarray:
    """(K, 3): pointing game, CNR and mIoU of each case; `maps(rows)` gives the heatmaps (k, H, W) of some cases."""
    scores = []
    for start in range(0, len(cases), chunk):
        rows = np.arange(start, min(start + chunk, len(cases)))
        heatmap, boxes = maps(rows), [cases.boxes[row] for row in rows]
        scores.append(torch.stack([metric(heatmap, boxes) for metric in METRICS.values()], dim=1))
    scores = torch.cat(scores).numpy()
    return np.where(np.isfinite(scores), scores, np.nan)


METRICS = {"pointing game": pointing_game, "CNR": contrast_to_noise, "mIoU": mean_iou}


def ground(
    model, tokenizer: Tokenizer, collection: Collection, *, budget: str | Budget | None = None,
    split: str | None = "test", seed: int = 0, kind: str = "lexicon", examination: Examination | None = None,
) -> Result:  # fmt: skip
    """Pointing game, CNR and mIoU of the maps of phrases that name finding and side, against normal statements.

    The maps are `contribution_map`s: what each patch adds to the zero-shot score of the phrase.

    Controls: shuffled phrases (the map must follow the phrase), random weights (the map must be learned) and a centre
    prior (it must beat a map that sees nothing). A phrase is the renormalised mean embedding of its wordings.
    """
    exam = examination or Examination(model, tokenizer, collection, budget=budget, split=split, seed=seed)
    size, resamples = exam.budget.image_size, exam.budget.resamples
    cases = Cases(exam.collection, size=size)
    if not len(cases):
        raise KitError(f"{exam.collection.name} has no boxes in the frontal view, so grounding has nothing to point at")
    wordings = cases.wordings(kind)
    first, *_ = next(iter(wordings.values()))
    own_order = np.arange(len(cases))
    shuffled = np.random.default_rng(seed).permutation(len(cases))
    scores = {
        "model": score_maps(phrase_maps(exam, cases, kind=kind), cases),
        "shuffled phrases": score_maps(phrase_maps(exam, cases, kind=kind, order=shuffled), cases),
        "random weights": score_maps(phrase_maps(exam.control, cases, kind=kind), cases),
        "centre prior": score_maps(lambda rows: centre_prior(size).expand(len(rows), -1, -1), cases),
    }
    parts = {(name, "all"): (values, own_order) for name, values in scores.items()}
    for label in sorted(set(cases.labels)):
        parts["model", label] = (scores["model"], np.flatnonzero(np.array(cases.labels) == label))
    rows, estimates = [], {}
    for (name, label), (values, chosen) in parts.items():
        interval = bootstrap_mean(values[chosen], clusters=cases.studies[chosen], resamples=resamples, seed=seed)
        columns = [(interval.value[i], interval.low[i], interval.high[i]) for i in range(len(METRICS))]
        rows.append([name, label, len(chosen), *(number for column in columns for number in column)])
        if label == "all":
            estimates[name] = [Estimate(metric, *map(float, c)) for metric, c in zip(METRICS, columns)]
    names = [part for metric in METRICS for part in (metric, f"{metric} low", f"{metric} high")]
    table = pd.DataFrame(rows, columns=["map", "finding", "phrases", *names]).set_index(["map", "finding"])
    headline, *also = estimates.pop("model")
    lost = int(np.isnan(scores["model"][:, 0]).sum())
    return Result(
        task="grounding", name=headline.name, value=headline.value, low=headline.low, high=headline.high,
        controls=tuple(Estimate(name, e[0].value, e[0].low, e[0].high) for name, e in estimates.items()),
        also=tuple(also), n=len(cases) - lost, unit="phrases", studies=len(set(cases.studies.tolist())),
        resamples=resamples, split=exam.where, seed=seed, table=table,
        prompts=f"{wording(cases.labels, kind)}, finding and side, such as {first!r}; {len(wordings)} phrases",
        rule=(
            "map: what each patch adds to the similarity with the phrase minus that with normal statements, up-sampled "
            "bilinearly; pointing game: the maximum lies in a box, "
            "equal maxima share the hit; CNR: signed, raw map, population variance; mIoU: map rescaled to [-1, 1], "
            f"mean over thresholds {', '.join(map(str, THRESHOLDS))}, an empty prediction counts 0; boxes half-open, "
            f"several of one finding and side united, {lost} without a pixel left out; mean over phrases, studies "
            "resampled"
        ),
    )  # fmt: skip
