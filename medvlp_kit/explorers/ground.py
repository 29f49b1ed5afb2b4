"""Click a word or a sentence of a report, or type any phrase: five kinds of map, their scores, and untrained weights beside."""

from __future__ import annotations

import html
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..attribution import KINDS, Asked, word_occlusion, words
from ..downstream.encode import encode_texts, mean_embedding, randomised
from ..downstream.grounding import contrast_to_noise, pointing_game, rescaled
from ..downstream.prompts import normal_statements
from ..errors import KitError
from ..labeller import label_findings
from ..sections import sentences
from ..study import Collection, Region
from . import markup

if TYPE_CHECKING:
    from ..run_folder import Run
    from .shell import Explorer

AT_ONCE = ("similarity", "contribution", "Grad-CAM")  # the others need many passes through the model
SIDE = 148  # pixels of a map on the page


def regions_meant(phrase: str, regions: tuple[Region, ...]) -> tuple[Region, ...]:
    """The regions of what a phrase names, on the side it names; none where it names nothing that has a region."""
    named = label_findings(phrase)
    if not named:  # a phrase that is no statement, such as a bare "rib fracture"
        named = label_findings(f"There is {phrase.strip().rstrip('.')}.")
    return tuple(
        region for region in regions
        if region.label in named and named[region.label].side in (None, "bilateral", region.side)
    )  # fmt: skip


class Grounding:
    """The pure function; the control is a copy of the model with weights drawn anew."""

    def __init__(self, run: Run, collection: Collection):
        self.collection, self.tokenizer, self.length = collection, run.tokenizer, run.budget.text_length
        self.size = run.budget.image_size
        self.models = {"the model": run.model, "untrained weights": randomised(run.model)}
        self.against = {name: self.embedded(name, normal_statements()) for name in self.models}
        self.image = lru_cache(maxsize=8)(lambda study: collection.images([study], size=self.size))
        self.regions = lru_cache(maxsize=32)(lambda study: collection.regions(study, size=self.size))
        self.map = lru_cache(maxsize=256)(self._map)
        self.asked = lru_cache(maxsize=64)(self._asked)

    def embedded(self, name: str, texts: list[str]) -> torch.Tensor:
        """The mean embedding of some texts, (1, D), as the model or its control reads them."""
        model = self.models[name]
        return mean_embedding(model, encode_texts(model, self.tokenizer, texts, length=self.length))[None]

    def _asked(self, name: str, phrase: str) -> Asked:
        encode = self.tokenizer.encode
        return Asked(
            sentences=(phrase,), tokens=encode([phrase], length=self.length),
            normal=encode(normal_statements()[:1], length=self.length),
            text=self.embedded(name, [phrase]), against=self.against[name],
        )  # fmt: skip

    def _map(self, name: str, kind: str, study: int, phrase: str) -> torch.Tensor:
        """(H, W) on its own scale, from -1 to 1."""
        with torch.enable_grad():
            found = KINDS[kind](self.models[name], self.image(study), self.asked(name, phrase))
        return rescaled(found.detach().float())[0]

    def __call__(self, *, study: int, phrase: str) -> Iterator[str]:
        """First the picture, the report and the quick maps; then the page again with the slow ones."""
        phrase = " ".join(phrase.split())
        if not phrase:
            raise KitError("no phrase: click a word of the report, or type one")
        if not 0 <= study < len(self.collection):
            raise KitError(f"study {study}: there are 0 to {len(self.collection) - 1}")
        meant = regions_meant(phrase, self.regions(study))
        yield self.page(study, phrase, meant, whole=False)
        yield self.page(study, phrase, meant, whole=True)

    def page(self, study: int, phrase: str, meant: tuple[Region, ...], *, whole: bool) -> str:
        boxes = [region.box for region in meant]
        places = ", ".join(f"{region.side or ''} {region.label.lower()}".strip() for region in meant)
        picture = markup.tile(
            self.image(study)[0], boxes=boxes, side=SIDE + 40,
            alt=f"Phantom radiograph of study {study}" + (f" with boxes around {places}" if meant else " without boxes"),
            caption=f"Boxes: {places}" if meant else "Nothing with a box is named.",
        )  # fmt: skip
        words = self.words(study, phrase) if whole else ""
        parts = [markup.row(picture, f'<div style="max-width:36em">{self.report(study, phrase)}{words}</div>')]
        for name in self.models:
            ready = KINDS if whole else AT_ONCE if name == "the model" else ()
            line = markup.row(*(self.tile(name, kind, study, phrase, boxes, ready=kind in ready) for kind in KINDS))
            parts += [markup.note(f"Maps of {name}, each on its own scale:"), line]
        return "".join(parts)

    def tile(self, name: str, kind: str, study: int, phrase: str, boxes: list, *, ready: bool) -> str:
        if not ready:
            grey = np.full((4, 4), 0.5)
            return markup.tile(grey, side=SIDE, alt=f"The {kind} map of {name} is being computed", caption=f"{kind}: working …")
        heat = self.map(name, kind, study, phrase)
        score = ""
        if boxes:
            hit, contrast = float(pointing_game(heat, boxes)), float(contrast_to_noise(heat, boxes))
            score = f": {'hit' if hit > 0.5 else 'miss'}, CNR {contrast:+.2f}"
        return markup.tile(
            self.image(study)[0], heat=heat, scale=(-1, 1), boxes=boxes, side=SIDE,
            alt=f"Map by {kind} of {name} for the phrase {phrase}{score}", caption=kind + score,
        )  # fmt: skip

    def report(self, study: int, phrase: str) -> str:
        """The report, each word and each sentence to be picked."""
        lines = []
        for sentence in sentences(self.collection.report(study).text):
            parts = sentence.split()
            each = " ".join(
                markup.pickable(html.escape(word), word.strip(".,;:()"), chosen=word.strip(".,;:()") == phrase)
                for word in parts
            )
            mark = markup.pickable("▸ ", sentence, chosen=sentence == phrase)
            lines.append(f'<p style="margin:0.15em 0">{mark}{each}</p>')
        return markup.note("The report. Pick a word, or ▸ for its whole sentence:") + "".join(lines)

    @lru_cache(maxsize=64)  # noqa: B019  (one explorer, one model: it lives as long as the page)
    def words(self, study: int, phrase: str) -> str:
        """How much the similarity falls when a word of the phrase is left out."""
        model, tokens = self.models["the model"], self.tokenizer.encode([phrase], length=self.length)
        lost = word_occlusion(model, self.image(study), tokens, tokenizer=self.tokenizer)
        shares = words(tokens, lost, self.tokenizer, how="mean")[0]
        if len(shares) < 2:
            return markup.note("Of a single word no part can be left out.")
        top = max(abs(value) for _, value in shares) or 1.0
        marks = [
            markup.shaded(
                f"{html.escape(word)}<sub>{value:+.2f}</sub>", value, scale=(-top, top), colours=markup.DIVERGING,
                title=f"{value:+.3f}",
            )
            for word, value in shares
        ]  # fmt: skip
        told = markup.note("Cosine lost when a word of the phrase is left out:")
        return told + f'<p style="line-height:1.9">{" ".join(marks)}</p>'


def grounding_explorer(run: Run, collection: Collection, *, study: int = 0, phrase: str | None = None) -> Explorer:
    """Ask `run` where in a study of `collection` a phrase is; the first phrase is the first sentence with a box."""
    import ipywidgets as widgets

    from .shell import Explorer

    view = Grounding(run, collection)
    if phrase is None:
        said = sentences(collection.report(study).text)
        regions = collection.regions(study, size=view.size)
        phrase = next((sentence for sentence in said if regions_meant(sentence, regions)), said[-1])
    controls = {
        "study": widgets.IntSlider(
            value=study, min=0, max=len(collection) - 1, description="study", continuous_update=False
        ),
        "phrase": widgets.Text(
            value=phrase, description="phrase", continuous_update=False, layout=widgets.Layout(width="min(40em, 95%)")
        ),
    }
    return Explorer(view, controls, title="Where is it?", on_pick=lambda picked: {"phrase": picked})
