"""A batch as a matrix: temperature, loss, gradient, and the false negatives; pick a cell to see its pair."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..downstream.encode import encode_collection
from ..errors import KitError
from ..objectives.contrastive import info_nce
from ..study import Collection
from . import markup

if TYPE_CHECKING:
    from ..run_folder import Run
    from .shell import Explorer

CELL = 30  # pixels
SHOWN = ("cosine", "softmax of the row", "gradient")


def false_negatives(labels: torch.Tensor) -> np.ndarray:
    """(B, B) bool: pairs off the diagonal whose studies have the same labels, so that calling them wrong is wrong."""
    same = (labels.nan_to_num(-1)[:, None] == labels.nan_to_num(-1)[None]).all(-1).numpy()
    return same & ~np.eye(len(same), dtype=bool)


def matrices(image: torch.Tensor, text: torch.Tensor, *, temperature: float) -> dict[str, np.ndarray | float]:
    """Cosines, shares and gradient (B, B) of a batch of unit vectors (B, D), and the loss.

    The gradient is of InfoNCE with respect to the logits: (p - 1 + q - 1) / 2B on the diagonal, (p + q) / 2B elsewhere.
    """
    cosine = (image @ text.T).double()
    logits = cosine / temperature
    rows, columns, own = logits.softmax(1), logits.softmax(0), torch.eye(len(logits), dtype=torch.float64)
    gradient = ((rows - own) + (columns - own)) / (2 * len(logits))
    loss = float(info_nce(image.double(), text.double(), temperature=temperature))
    found = {"cosine": cosine, "softmax of the row": rows, "gradient": gradient}
    return {name: value.numpy() for name, value in found.items()} | {"loss": loss}


class Matrix:
    """The pure function, with one batch encoded once."""

    def __init__(self, images: torch.Tensor, texts: list[str], image: torch.Tensor, text: torch.Tensor, labels: torch.Tensor):
        self.images, self.texts, self.image, self.text = images, texts, image, text
        self.false = false_negatives(labels)

    def __call__(self, *, temperature: float, shows: str, picked: str) -> str:
        """HTML of the matrix at this temperature, with the pair of the picked cell ("row,column")."""
        row, column = self.place(picked)
        found = matrices(self.image, self.text, temperature=temperature)
        count, values = len(self.texts), found[shows]
        top = float(np.abs(values).max()) or 1.0
        scale = {"cosine": (-1.0, 1.0), "gradient": (-top, top)}.get(shows, (0.0, 1.0))
        colours = markup.SEQUENTIAL if shows == "softmax of the row" else markup.DIVERGING
        ground = markup.coloured(values, scale=scale, colours=colours)
        lines = []
        for i in range(count):
            cells = "".join(self.cell(i, j, values[i, j], ground[i, j], chosen=(i, j) == (row, column)) for j in range(count))
            lines.append(f'<tr><th scope="row" style="padding:0 4px">{i + 1}</th>{cells}</tr>')
        head = "".join(f'<th scope="col" style="text-align:center">{j + 1}</th>' for j in range(count))
        matrix = f'<table style="border-collapse:collapse"><caption>{shows}: images down, texts across</caption><thead><tr>'
        matrix += f'<th></th>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
        return markup.row(matrix, f'<div style="margin-left:1em;max-width:24em">{self.told(found, row, column)}</div>')

    def cell(self, i: int, j: int, value: float, ground: np.ndarray, *, chosen: bool) -> str:
        ink = "black" if ground @ markup.LUMINANCE > 140 else "white"
        mark = "≡" if self.false[i, j] else ("●" if i == j else "&nbsp;")
        kind = "true pair" if i == j else "false negative" if self.false[i, j] else "negative"
        inner = (
            f'<span title="image {i + 1}, text {j + 1}: {value:.3f}, {kind}" style="display:block;width:{CELL}px;height:{CELL}px;'
            f"line-height:{CELL}px;text-align:center;color:{ink};background:rgb({','.join(map(str, ground))})\">{mark}</span>"
        )
        return f'<td style="padding:1px">{markup.pickable(inner, f"{i},{j}", chosen=chosen, tag="div")}</td>'

    def told(self, found: dict, row: int, column: int) -> str:
        """The numbers of the batch, and the picked pair."""
        count, gradient = len(self.texts), np.abs(found["gradient"])
        off = gradient[~np.eye(count, dtype=bool)].sum()
        share = gradient[self.false].sum() / off if off else 0.0
        kind = "the true pair" if row == column else "a false negative: same findings" if self.false[row, column] else "a negative"
        return (
            markup.note(f"Loss {found['loss']:.3f}; chance is ln {count} = {math.log(count):.3f}.")
            + markup.note(
                f"≡ marks {int(self.false.sum())} false negatives of {count * (count - 1)} negatives; "
                f"{share:.0%} of all pushing falls on them."
            )
            + markup.tile(
                self.images[row], side=160, alt=f"Phantom radiograph of image {row + 1}, the row of the picked cell",
                caption=f"image {row + 1}",
            )
            + markup.note(f"Text {column + 1}: {self.texts[column]}")
            + markup.note(
                f"Picked: {kind}; cosine {found['cosine'][row, column]:.3f}, share of its row "
                f"{found['softmax of the row'][row, column]:.3f}, gradient {found['gradient'][row, column]:+.4f}."
            )
        )  # fmt: skip

    def place(self, picked: str) -> tuple[int, int]:
        try:
            row, column = (int(number) for number in picked.split(","))
        except ValueError:
            raise KitError(f"cell {picked!r}: give row and column, such as '0,3'") from None
        if not (0 <= row < len(self.texts) and 0 <= column < len(self.texts)):
            raise KitError(f"cell {picked!r} lies outside the batch of {len(self.texts)}")
        return row, column


def similarity_matrix(run: Run, collection: Collection, *, count: int = 12, first: int = 0) -> Explorer:
    """Explore studies `first` to `first + count` of `collection` as one batch of `run`."""
    import ipywidgets as widgets

    from .shell import Explorer

    if not 2 <= count <= 24:
        raise KitError(f"count={count}: from 2 to 24 pairs fit on the page")
    part = collection.subset(list(range(first, first + count)))
    text = run.recipe.texts[0]
    found = encode_collection(run.model, run.tokenizer, part, budget=run.budget, text=text)
    images = part.images(range(count), size=run.budget.image_size)
    view = Matrix(images, list(found.sentences), found.image_embedding, found.text_embedding, found.labels)
    controls = {
        "temperature": widgets.FloatLogSlider(
            value=0.07, base=10, min=-2, max=0.5, step=0.05, description="temperature", readout_format=".3f"
        ),
        "shows": widgets.Dropdown(options=SHOWN, value=SHOWN[0], description="colour"),
    }
    return Explorer(view, controls, title="A batch as a matrix", picked="0,0")
