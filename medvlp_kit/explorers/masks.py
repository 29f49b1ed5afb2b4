"""Hide patches and words, see what a masked model puts in their place, and whether the image helped with the words."""

from __future__ import annotations

import html
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..collate import collate
from ..downstream.encode import evaluating
from ..encoders.hidden import encode_visible
from ..errors import KitError, unknown
from ..model import ForwardPass
from ..objectives.masked_image import VisiblePart, patchify, unpatchify
from ..objectives.masked_text import ALWAYS_MASK, TextMasking
from ..objectives.vocabulary import Vocabulary
from ..study import Batch, Collection
from . import markup

if TYPE_CHECKING:
    from ..run_folder import Run
    from .shell import Explorer

PATTERNS = ("scattered", "one block", "left half", "right half")
WORDS = ("all", "medical")
SIDE, LIKELY = 192, 4


def hidden_patches(grid: tuple[int, int], *, ratio: float, pattern: str, draw: int) -> Tensor:
    """Which patches are hidden, (N,) bool: round(ratio N), but one stays; halves of the picture ignore the ratio."""
    height, width = grid
    count = height * width
    keep = max(1, count - round(ratio * count))
    chance = torch.rand(count, generator=torch.Generator().manual_seed(draw))
    if pattern == "left half":
        return (torch.arange(count) % width) < width // 2
    if pattern == "right half":
        return (torch.arange(count) % width) >= width - width // 2
    if pattern == "one block":  # the patches nearest a random centre
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centre = int(chance.argmax())
        distance = torch.maximum((y - centre // width).abs(), (x - centre % width).abs()).flatten()
        chance = distance + 0.5 * chance  # ties of distance by lot
        return torch.zeros(count, dtype=torch.bool).scatter(0, chance.argsort()[: count - keep], True)
    if pattern != "scattered":
        raise unknown("pattern", pattern, PATTERNS)
    return torch.zeros(count, dtype=torch.bool).scatter(0, chance.argsort()[keep:], True)


def part_of(encoder, images: Tensor, hidden: Tensor) -> VisiblePart:
    """What the encoder makes of the patches of images (1, C, H, W) that are not hidden (N,)."""
    order = torch.cat([torch.nonzero(~hidden)[:, 0], torch.nonzero(hidden)[:, 0]])
    places = order[: int((~hidden).sum())][None]
    return VisiblePart(encode_visible(encoder, images, places), hidden[None], order.argsort()[None])


class Masking:
    """The pure function, for a run whose objective restores both (MRM, M3AE)."""

    def __init__(self, run: Run, collection: Collection):
        parts = [run.objective, *getattr(run.objective, "parts", {}).values()]
        restoring = [part for part in parts if hasattr(part, "restored")]
        if not restoring:
            raise KitError(f"the recipe {run.recipe.name!r} restores nothing that is hidden: take mrm or m3ae, or load_masked()")
        self.objective = restoring[0]
        self.vocabulary = Vocabulary(run.model.text_encoder.vocabulary_size, words=None)
        self.vocabulary.read(run.tokenizer)
        self.run, self.collection = run, collection
        self.batch = lru_cache(maxsize=16)(self._batch)
        self.predicted = lru_cache(maxsize=32)(self._predicted)
        self.pieces = {number: piece for piece, number in run.tokenizer.vocabulary.items()}

    def _batch(self, study: int) -> Batch:
        if not 0 <= study < len(self.collection):
            raise KitError(f"study {study}: there are 0 to {len(self.collection) - 1}")
        recipe, sizes = self.run.recipe, self.run.budget
        return collate(
            self.collection, [study], tokenizer=self.run.tokenizer, image_size=sizes.image_size, text_length=sizes.text_length,
            views=recipe.views, texts=recipe.texts, seed=0,
        )  # fmt: skip

    def _predicted(self, study: int, seen: int, image_ratio: float, pattern: str, text_ratio: float, words: str, draw: int):
        """hidden (N,), drawn (N, P), chosen (T,), probabilities (T, V) of the text of `study` with the image of `seen`."""
        run, batch = self.run, self.batch(study)
        model, objective, images = run.model, self.objective, self.batch(seen).images
        grid = tuple(size // model.image_encoder.stride for size in images.shape[-2:])
        hidden = hidden_patches(grid, ratio=image_ratio, pattern=pattern, draw=draw)
        masking = TextMasking(model.text_encoder.vocabulary_size, ratio=text_ratio, unit="word", which=words, rule=ALWAYS_MASK)
        masking.vocabulary = self.vocabulary  # read once
        masked = masking(batch.tokens, generator=torch.Generator().manual_seed(draw))
        shown = Batch(batch.indices, self.batch(seen).views, batch.texts, batch.sentences, batch.labels, batch.label_names)
        forward_pass = ForwardPass(model, shown)
        with evaluating(model), evaluating(objective):
            # the objective finds its two masked views made already, with what was hidden here
            forward_pass.cached(("visible part", objective.image_ratio), lambda: part_of(model.image_encoder, images, hidden))
            forward_pass.cached(objective.masking.key, lambda: masked)
            tokens, drawn = objective.restored(forward_pass)
            chances = objective.head(tokens[0]).float().softmax(-1)  # (T, V)
        return hidden, drawn[0].float(), masked.chosen[0], chances

    def __call__(
        self, *, study: int, image_ratio: float, pattern: str, text_ratio: float, words: str, draw: int, picked: str
    ) -> Iterator[str]:
        """HTML: the picture, what is left of it and what is drawn; the report with its gaps filled. At last, what the image
        was worth to the words."""
        asked = (image_ratio, pattern, text_ratio, words, draw)
        hidden, drawn, chosen, chances = self.predicted(study, study, *asked)
        other = (study + 1) % len(self.collection)
        ids = self.batch(study).tokens.ids[0]
        pictures = self.pictures(study, hidden, drawn)
        report = self.report(ids, chosen, chances, picked)
        if not chosen.any():
            yield pictures + report
            return
        right = float((chances.argmax(-1) == ids)[chosen].float().mean())
        told = f"{int(chosen.sum())} pieces hidden, {right:.0%} found. "
        told += f"Cost of a piece: {self.cost(ids, chosen, chances):.2f} nats with this image, "
        yield pictures + report + markup.note(f"{told}…")
        _, _, _, without = self.predicted(study, other, *asked)
        told += f"{self.cost(ids, chosen, without):.2f} with the image of study {other} in its place."
        yield pictures + report + markup.note(told)

    @staticmethod
    def cost(ids: Tensor, chosen: Tensor, chances: Tensor) -> float:
        """The mean of -log p of the hidden pieces."""
        own = chances.gather(1, ids[:, None])[:, 0][chosen]
        return float(-own.clamp(min=1e-12).log().mean()) if len(own) else float("nan")

    def pictures(self, study: int, hidden: Tensor, drawn: Tensor) -> str:
        """The picture, the part that is seen, and the hidden part as drawn, on the true patches' brightness and contrast."""
        batch, target = self.batch(study), self.objective.target
        whole = batch.views[self.run.recipe.views[-1]] if target.kind == "super_resolution" else batch.images
        true = patchify(whole, target.cell)[0]  # (N, P)
        seen, filled = true.clone(), true.clone()
        seen[hidden] = 0.5
        centre, spread = true.mean(-1, keepdim=True), true.std(-1, keepdim=True)
        restored = drawn if target.kind == "pixels" else drawn * spread + centre
        filled[hidden] = restored[hidden]
        error, plain = ((each - true)[hidden].square().mean() for each in (restored, centre.expand_as(true)))
        share = f"{int(hidden.sum())} of {len(hidden)} patches hidden"
        better = f"Error {error:.4f}; a grey patch of the right brightness has {plain:.4f}." if hidden.any() else "as it is"
        return markup.row(
            self.tile(true, target.cell, alt=f"Phantom radiograph of study {study}, whole", caption="the picture"),
            self.tile(seen, target.cell, alt=f"The part of the radiograph that the model sees: {share}", caption=share),
            self.tile(filled, target.cell, alt=f"The radiograph, its hidden patches drawn by the model: {better}", caption=better),
        )  # fmt: skip

    @staticmethod
    def tile(patches: Tensor, cell: int, **said) -> str:
        return markup.tile(unpatchify(patches[None], cell)[0].clamp(0, 1), side=SIDE, **said)

    def report(self, ids: Tensor, chosen: Tensor, chances: Tensor, picked: str) -> str:
        """The report; a hidden piece shows the model's first choice with its probability, and what is true if it is wrong."""
        parts, place = [], int(picked) if picked.isdigit() else -1
        for i, number in enumerate(ids.tolist()):
            word = self.pieces[number]
            if not chosen[i]:
                parts.append(html.escape(word))
                continue
            guess = int(chances[i].argmax())
            right = guess == number
            edge = "solid #0072B2" if right else "dashed #D55E00"
            truth = "" if right else f" <s>{html.escape(word)}</s>"
            inner = (
                f'<span style="border-bottom:3px {edge};padding:0 0.15em">{html.escape(self.pieces[guess])}'
                f"<sub>{chances[i, guess]:.0%}</sub>{truth}</span>"
            )
            parts.append(markup.pickable(inner, str(i), chosen=i == place))
        told = markup.note("Underlined: hidden, with the model's first choice. Dashed: wrong, with what was written struck out.")
        lines = f'<p style="line-height:2;max-width:46em">{" ".join(parts)}</p>'
        if 0 <= place < len(ids) and chosen[place]:
            best = chances[place].topk(LIKELY)
            guesses = ", ".join(f"{self.pieces[int(n)]} {float(p):.0%}" for p, n in zip(best.values, best.indices))
            lines += markup.note(f"In place of “{self.pieces[int(ids[place])]}”: {guesses}.")
        return told + lines


def masking_explorer(run: Run, collection: Collection, *, study: int = 0) -> Explorer:
    """Hide parts of studies of `collection` from `run`, a masked model such as `load_masked()`."""
    import ipywidgets as widgets

    from .shell import Explorer

    view = Masking(run, collection)
    objective = view.objective
    whole = dict(continuous_update=False)
    controls = {
        "study": widgets.IntSlider(value=study, min=0, max=len(collection) - 1, description="study", **whole),
        "image_ratio": widgets.FloatSlider(
            value=objective.image_ratio, min=0, max=0.98, step=0.01, description="of the image", readout_format=".0%"
        ),
        "pattern": widgets.Dropdown(options=PATTERNS, value=PATTERNS[0], description="pattern"),
        "text_ratio": widgets.FloatSlider(
            value=objective.masking.ratio, min=0.05, max=1, step=0.05, description="of the words", readout_format=".0%"
        ),
        "words": widgets.Dropdown(options=WORDS, value=WORDS[0], description="words"),
        "draw": widgets.IntSlider(value=0, min=0, max=20, description="draw"),
    }
    return Explorer(view, controls, title="What is hidden?", picked="")
