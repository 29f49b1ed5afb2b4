"""Image and text points of one model in one plane; pick one or draw around many, and see what lies there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..downstream.encode import encode_collection
from ..errors import KitError
from ..study import Collection
from . import markup
from .plane import COLOURS, LARGE, Plane, Stages, projections

if TYPE_CHECKING:
    from ..run_folder import Run
    from .shell import Explorer


def embedding_explorer(
    run: Run | None, collection: Collection | Mapping[str, Collection], *, stages: Stages | None = None,
    projection: str = "PCA", colour: str = "modality", size: int = 64, height: int = 380,
) -> Explorer:  # fmt: skip
    """Explore where `run` puts the images and texts of `collection`, or of several: {"train": ..., "test": ...}.

    stages: embeddings of several checkpoints instead of the run's own, in order, such as `growth()`; then run may be None
    """
    import ipywidgets as widgets
    import jscatter

    from .shell import Explorer

    parts = dict(collection) if isinstance(collection, Mapping) else {"all": collection}
    if stages is None:
        if run is None:
            raise KitError("give a run, or stages: embeddings of checkpoints")
        found = [
            encode_collection(run.model, run.tokenizer, part, budget=run.budget, text=run.recipe.texts[0])
            for part in parts.values()
        ]
        stages = {"now": tuple(torch.cat([getattr(f, name) for f in found]) for name in ("image_embedding", "text_embedding"))}
    plane = Plane(parts, stages, size=size)
    names, table = list(stages), plane.table.copy()
    table[["x", "y"]] = plane.coordinates(names[-1], projection)
    scatter = jscatter.Scatter(
        data=table, x="x", y="y", color_by=colour, color_map=list(plane.tints(colour).values()), height=height, width="auto",
        background_color="white", size=4 if plane.count <= LARGE else 2, axes=False, legend=True,
    )  # fmt: skip
    # of very many points the outlines are not seen, and square ones without blending are drawn several times as fast
    scatter.options(transition_points_duration=400, regl_scatterplot_options={"performanceMode": plane.count > LARGE})
    explorers: list[Explorer] = []
    drawn = {"plane": (names[-1], projection), "colour": colour, "pairs": False}

    def prepare(*, checkpoint: str, projection: str, colour: str, pairs: bool, picked: str) -> None:
        """Move what changed in the plane."""
        if drawn["plane"] != (checkpoint, projection):
            if projection != "PCA" and explorers:
                explorers[0].board.value = markup.note(f"Computing {projection} of {2 * plane.count:,} points …")
            table[["x", "y"]] = plane.coordinates(checkpoint, projection)
            scatter.data(table, animate=plane.count <= LARGE, reset_scales=True)
            drawn["plane"] = (checkpoint, projection)
        if drawn["colour"] != colour:
            scatter.color(by=colour, map=list(plane.tints(colour).values()))
            drawn["colour"] = colour
        if drawn["pairs"] != pairs:
            if pairs and plane.count > LARGE:
                raise KitError(f"{plane.count:,} lines would hide everything: take at most {LARGE:,} studies")
            scatter.connect(by="study" if pairs else None)
            if pairs:
                scatter.connection_opacity(0.15)
            drawn["pairs"] = pairs

    controls = {
        "checkpoint": widgets.SelectionSlider(options=names, value=names[-1], description="checkpoint"),
        "projection": widgets.Dropdown(options=projections(), value=projection, description="plane"),
        "colour": widgets.Dropdown(options=COLOURS, value=colour, description="colour"),
        "pairs": widgets.Checkbox(value=False, description="lines between pairs", indent=False),
    }
    explorer = Explorer(
        plane, controls, title="Images and texts in one plane", picked="", prepare=prepare,
        stage=scatter.show(buttons=["pan_zoom", "lasso", "full_screen", "reset"]),
        still=lambda: plane.still(*(controls[name].value for name in ("checkpoint", "projection", "colour"))),
    )  # fmt: skip

    def choose(change) -> None:
        chosen = [] if change["new"] is None else np.atleast_1d(change["new"]).astype(int).tolist()
        explorer.set(picked=",".join(map(str, chosen)))

    def hover(change) -> None:
        if change["new"] is not None and scatter.widget.selection is not None and len(scatter.widget.selection) == 0:
            explorer.set(picked=str(change["new"]))

    scatter.widget.observe(choose, names="selection")
    scatter.widget.observe(hover, names="hovering")
    explorer.scatter = scatter
    explorers.append(explorer)
    return explorer


def growth() -> tuple[Stages, Collection]:
    """Embeddings of a small CLIP-like run at several steps, and their studies: how alignment grew.

    Made by `python assets/results/growth.py`.
    """
    from ..assets import asset
    from ..checkpoint import load_tensors
    from ..phantoms import Phantoms

    tensors, about = load_tensors(asset("results", "growth.safetensors"))
    steps = about["steps"]
    studies = Phantoms(about["studies"], seed=about["seed"], split="test")

    def unit(name: str) -> Tensor:
        return torch.nn.functional.normalize(tensors[name].float(), dim=-1)

    return {f"step {step}": (unit(f"image.{step}"), unit(f"text.{step}")) for step in steps}, studies
