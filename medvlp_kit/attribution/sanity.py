"""Sanity checks of maps (Adebayo et al. 2018): does a map change when what it claims to show is destroyed?

`weight_randomisation` draws the weights anew from the output down, layer by layer; `input_randomisation` gives each
picture another phrase, or each phrase another picture. Both return the rank correlation between the maps before and
after: near 1, the map does not depend on what was destroyed, and proves nothing about it. The row "both changed" says
how much maps of unrelated questions have in common: no test can be asked to fall below that.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..downstream.encode import randomised
from ..downstream.intervals import Intervals, resample_counts
from ..errors import KitError
from .gallery import Gallery, Kind

TEXT_SIDE = ("text_encoder", "text_projection", "token_projection", "temperature")
Stages = Mapping[str, Sequence[str]]  # name -> modules


def rank_correlation(first: Tensor, second: Tensor, *, absolute: bool = False) -> Tensor:
    """Spearman's rank correlation over the pixels of each pair of maps (B, H, W), (B,) float64.

    Pixels that are NaN in either map take no part; ties share their mean rank. NaN where a map is constant.
    absolute=True ranks |map|: whether the same places are marked, for or against.
    """
    from scipy.stats import rankdata

    if first.shape != second.shape or first.ndim != 3:
        raise KitError(f"maps {tuple(first.shape)} and {tuple(second.shape)}: give two of the same shape (B, H, W)")
    a, b = (maps.detach().double().cpu().flatten(1).numpy() for maps in (first, second))
    a, b = (np.abs(a), np.abs(b)) if absolute else (a, b)
    missing = np.isnan(a) | np.isnan(b)
    a, b = (rankdata(np.where(missing, np.nan, x), axis=1, nan_policy="omit") for x in (a, b))
    count = np.maximum((~missing).sum(1, keepdims=True), 1)
    a, b = (np.where(missing, 0.0, x - np.where(missing, 0.0, x).sum(1, keepdims=True) / count) for x in (a, b))
    scale = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return torch.from_numpy(np.where(scale > 0, (a * b).sum(1) / np.where(scale > 0, scale, 1), np.nan))


def seeded_mean(values: np.ndarray, *, clusters: np.ndarray, resamples: int = 1000, seed: int = 0) -> Intervals:
    """The mean of values (K cases, S seeds) with a 95 % interval; NaN are left out.

    Two-way bootstrap: whole clusters (studies) and whole seeds are drawn with replacement, because cases of a study are
    not independent and neither are the cases of one seed. With three seeds their share of the interval is rough.
    """
    values = np.asarray(values, dtype=float)
    names, place = np.unique(np.asarray(clusters), return_inverse=True)
    present = ~np.isnan(values)
    total, count = np.zeros((2, len(names), values.shape[1]))
    np.add.at(total, place, np.where(present, values, 0.0))
    np.add.at(count, place, present.astype(float))
    generator = np.random.default_rng(seed)
    studies = resample_counts(len(names), resamples=resamples, generator=generator)  # (N, R)
    seeds = resample_counts(values.shape[1], resamples=resamples, generator=generator).T  # (R, S)
    above, below = ((studies.T @ part) * seeds for part in (total, count))
    above, below = above.sum(1), below.sum(1)
    samples = np.where(below > 0, above / np.maximum(below, 1e-300), np.nan)
    value = total.sum() / count.sum() if count.sum() else np.nan
    return Intervals.of(value, samples)


def find_stages(model: nn.Module, run: Callable[[], object], *, leave: Sequence[str] = TEXT_SIDE) -> dict[str, list[str]]:
    """The parts of `model` that have weights and run in `run()`, from the output to the input: name -> modules.

    A block of a stack is one stage, and so is a layer outside of stacks. Modules that begin with a name in `leave` (by
    default the text side: the question must stay the same) are passed over.
    """
    seen: dict[str, None] = {}
    owners = {name: m for name, m in model.named_modules() if any(p.ndim for p in m.parameters(recurse=False))}
    handles = [
        module.register_forward_pre_hook(lambda module, arguments, name=name: seen.setdefault(name))
        for name, module in owners.items()
        if not name.startswith(tuple(leave))
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, list[str]] = {}
    for name in seen:
        found.setdefault(_stage(model, name), []).append(name)
    return dict(reversed(found.items()))


def _stage(model: nn.Module, name: str) -> str:
    """The block a module belongs to: "image_encoder.body.layer1.0.conv1" -> "image_encoder.body.layer1.0"."""
    parts = name.split(".")
    for end, part in enumerate(parts, start=1):
        if part.isdigit():
            whole = ".".join(parts[:end])
            is_block = any(True for _ in model.get_submodule(whole).children())
            return whole if is_block else ".".join(parts[: end - 1])
    return name


def cascade(
    model: nn.Module, stages: Stages, *, seed: int = 0, independent: bool = False
) -> Iterator[tuple[str, nn.Module]]:
    """(stage, a copy of the model whose weights are random from the output down to this stage), one for each stage.

    independent=True: in each copy that stage alone is random. New weights are those of `encode.randomised`, the same
    ones at every stage of a seed. A module's statistics (of batch normalisation) are reset with its weights.
    """
    twin = randomised(model, seed=seed)
    changed = copy.deepcopy(model)
    for stage, names in stages.items():
        if independent:
            changed = copy.deepcopy(model)
        with torch.no_grad():
            for name in names:
                target, source = changed.get_submodule(name), twin.get_submodule(name)
                for own, new in (
                    *zip(target.parameters(recurse=False), source.parameters(recurse=False), strict=True),
                    *zip(target.buffers(recurse=False), source.buffers(recurse=False), strict=True),
                ):
                    own.copy_(new)
        yield stage, changed


def weight_randomisation(
    gallery: Gallery, kind: Kind, *, stages: Stages | None = None, seeds: Sequence[int] = (0, 1, 2),
    independent: bool = False, resamples: int | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Rank correlation of the trained model's maps with those after each stage of randomisation, a row a stage.

    stages: name -> modules, in the order in which they are destroyed; None finds those that this kind runs. The text
    side stays as trained. Columns: see `input_randomisation`.
    """
    if stages is None:
        chosen = torch.arange(min(2, len(gallery)))
        images, asked = gallery.images[gallery.which[chosen]], gallery.asked().rows(chosen)
        stages = find_stages(gallery.model, lambda: kind(gallery.model, images, asked))
    asked, before = gallery.asked(), gallery.maps(kind)
    found: dict[str, list] = {stage: [] for stage in stages}
    for seed in seeds:
        for stage, model in cascade(gallery.model, stages, seed=seed, independent=independent):
            found[stage].append(_both(before, gallery.maps(kind, model=model, asked=asked)))
    return _table(found, gallery, index="random down to" if not independent else "random", resamples=resamples)


def input_randomisation(
    gallery: Gallery, kind: Kind, *, seeds: Sequence[int] = (0, 1, 2), resamples: int | None = None
) -> pd.DataFrame:
    """Rank correlation of each case's map with its map for another phrase, for another study's picture, and for both.

    Columns: rank correlation, low, high (mean over cases and seeds, two-way bootstrap over studies and seeds), the same
    of |map|, the least and the greatest mean of a seed, and the number of comparisons in which both maps vary.
    """
    before = gallery.maps(kind)
    found: dict[str, list] = {"another phrase": [], "another picture": [], "both changed": []}
    for seed in seeds:
        phrases = gallery.others(seed=seed, differ="phrase")
        pictures = gallery.others(seed=seed, differ="study")
        orders = ({"phrases": phrases}, {"pictures": pictures}, {"phrases": phrases, "pictures": pictures})
        for name, order in zip(found, orders, strict=True):
            found[name].append(_both(before, gallery.maps(kind, **order)))
    return _table(found, gallery, index="changed", resamples=resamples)


def _both(before: Tensor, after: Tensor) -> np.ndarray:
    """(K, 2): rank correlation of the maps and of their absolute values."""
    return torch.stack([rank_correlation(before, after, absolute=how) for how in (False, True)], 1).numpy()


def _table(found: dict[str, list[np.ndarray]], gallery: Gallery, *, index: str, resamples: int | None) -> pd.DataFrame:
    rows = {}
    for name, seeds in found.items():
        values = np.stack(seeds, axis=1)  # (K, S, 2)
        options = dict(clusters=gallery.cases.studies, resamples=resamples or gallery.budget.resamples, seed=gallery.seed)
        signed, plain = (seeded_mean(values[:, :, column], **options) for column in (0, 1))
        each = [np.nanmean(v) if not np.isnan(v).all() else np.nan for v in values[:, :, 0].T]
        rows[name] = {
            "rank correlation": signed.value, "low": signed.low, "high": signed.high,
            "of |map|": plain.value, "|map| low": plain.low, "|map| high": plain.high,
            "least seed": min(each), "greatest seed": max(each), "compared": int((~np.isnan(values[:, :, 0])).sum()),
        }  # fmt: skip
    return pd.DataFrame(rows).T.astype({"compared": int}).rename_axis(index)
