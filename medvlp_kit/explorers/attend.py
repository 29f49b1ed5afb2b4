"""Where does a layer look? Layer, head, and the patch or word that reads; self-attention, cross-attention, rollout."""

from __future__ import annotations

import html
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor, nn

from ..attention import capture
from ..attention_maps import AttentionMap, rollout
from ..collate import choose_text
from ..downstream.encode import evaluating
from ..errors import KitError, unknown
from ..study import Collection
from . import markup

if TYPE_CHECKING:
    from ..run_folder import Run
    from .shell import Explorer

SIDE = 288  # pixels of the picture on the page
MEAN = "mean of the heads"


class Source(NamedTuple):
    """One attention matrix: weights (heads, Q, K), and what its rows and columns are, "patch 5", "word 2" or a name."""

    weights: Tensor
    queries: list[str]
    keys: list[str]


def sequence(length: int, *, patches: int, words: int, names: dict[int, list[str]], part: str) -> list[str] | None:
    """What the positions of a layer's sequence are, from its length and the part of the model; None if unknown."""
    image, text = [f"patch {i}" for i in range(patches)], [f"word {i}" for i in range(words)]
    if part == "image":
        return [f"[CLS{i or ''}]" for i in range(length - patches)] + image if length >= patches else None
    if part == "text":
        return text if length == words else None
    if part == "joined" and length == patches + words + 2:
        return ["[CLS]", *image, "[SEP]", *text]
    return names.get(length)


def sources(maps: list[AttentionMap], *, patches: int, words: int, entities: list[str]) -> dict[str, Source]:
    """The captured maps of one study by what a reader calls them, with the rollout of each encoder at its end."""
    names, found, counts = {len(entities): entities, patches: [f"patch {i}" for i in range(patches)]}, {}, {}
    stacks: dict[str, list[AttentionMap]] = {}
    for each in maps:
        parts = _parts(each)
        if parts is None:
            continue
        title, asks, answers = parts
        options = dict(patches=patches, words=words, names=names)
        queries, keys = (
            ["the pooled image"] if part == "pool" else sequence(length, part=part, **options)
            for part, length in zip((asks, answers), each.weights.shape[-2:])
        )
        if queries is None or keys is None:
            continue
        counts[title] = counts.get(title, 0) + 1
        found[f"{title}, layer {counts[title]}"] = Source(each.weights[0].float().cpu(), queries, keys)
        if each.kind == "self" and asks in ("image", "text"):
            stacks.setdefault(title, []).append(each)
    for title, layers in stacks.items():
        if len(layers) > 1:
            first = found[f"{title}, layer 1"]
            found[f"{title}, rollout"] = Source(rollout(layers).float().cpu(), first.queries, first.keys)
    return found


def _parts(each: AttentionMap) -> tuple[str, str, str] | None:
    """(title, who asks, who answers) of a map by its place in the model."""
    name = each.name
    if "image_encoder" in name:
        return ("image: pooling", "pool", "image") if each.kind == "pool" else ("image: patches to patches", "image", "image")
    if "text_encoder" in name:
        return "text: words to words", "text", "text"
    if "text_blocks" in name:
        cross = ("fusion: words to patches", "text", "image")
        return cross if each.kind == "cross" else ("fusion: words to words", "text", "text")
    if "image_blocks" in name:
        cross = ("fusion: patches to words", "image", "text")
        return cross if each.kind == "cross" else ("fusion: patches to patches", "image", "image")
    if "fusion" in name:
        return "fusion: patches and words", "joined", "joined"
    if "queries" in name:
        cross = ("findings to patches", "names", "image")
        return cross if each.kind == "cross" else ("findings to findings", "names", "names")
    return None


class Attention:
    """The pure function; the maps of a study are computed once."""

    def __init__(self, run: Run, collection: Collection):
        self.run, self.collection = run, collection
        self.whole = nn.ModuleDict({"model": run.model, "objective": run.objective})
        parts = getattr(run.objective, "parts", {})
        self.queries = parts["queries"] if "queries" in parts else None
        self.of = lru_cache(maxsize=16)(self._of)

    def _of(self, study: int) -> tuple[Tensor, list[str], tuple[int, int], dict[str, Source]]:
        """The image, the text's pieces, the grid of patches, and the sources."""
        if not 0 <= study < len(self.collection):
            raise KitError(f"study {study}: there are 0 to {len(self.collection) - 1}")
        run = self.run
        image = self.collection.images([study], size=run.budget.image_size)
        text = choose_text(self.collection.report(study), run.recipe.texts[0], seed=0, index=study)
        tokens = run.tokenizer.encode([text], length=run.budget.text_length)
        with evaluating(self.whole):
            known = self.queries.queries(run.model) if self.queries is not None else None
            with capture(self.whole) as maps:
                seen, read = run.model.encode_image(image), run.model.encode_text(tokens)
                if run.model.fusion is not None and run.model.fusion.style != "none":
                    run.model.fuse(seen, read)
                if known is not None:
                    self.queries.answer(seen, known)
        pieces = {number: piece for piece, number in run.tokenizer.vocabulary.items()}
        words = [pieces[number] for number in tokens.ids[0].tolist()]
        entities = list(self.queries.entities) if self.queries is not None else []
        if known is not None:
            entities += [f"place {i + 1}" for i in range(len(known) - len(entities))]
        found = sources(list(maps), patches=seen.patches.shape[1], words=len(words), entities=entities)
        return image[0], words, seen.grid, found

    def titles(self) -> list[str]:
        return list(self.of(0)[3])

    def __call__(self, *, study: int, layer: str, head: str, picked: str) -> str:
        """HTML: the picture and the text, shaded by what the picked patch or word reads from."""
        image, words, grid, found = self.of(study)
        if layer not in found:
            raise unknown("attention", layer, found)
        source = found[layer]
        heads = len(source.weights)
        number = None if head == MEAN else int(head)
        if number is not None and not 1 <= number <= heads:
            raise KitError(f"head {number}: this layer has 1 to {heads}")
        query = picked if picked in source.queries else self.first(source.queries, words, grid, study)
        weights = source.weights.mean(0) if number is None else source.weights[number - 1]  # (Q, K)
        row = weights[source.queries.index(query)].numpy()
        share = dict(zip(source.keys, row.tolist()))
        picture = self.picture(image, grid, share, source, query)
        chips = self.words(words, share, source, query)
        others = [name for name in dict.fromkeys([*source.queries, *source.keys]) if not name.startswith(("patch", "word"))]
        if others:
            chips += markup.note("Others:") + self.chips({name: name for name in others}, share, source, query)
        spread = float(-(row[row > 0] * np.log(row[row > 0])).sum())
        told = (
            f"Asked by {self.name(query, words)}. It reads as widely as from {np.exp(spread):.1f} of {len(row)} places alike; "
            f"its strongest: {self.name(source.keys[int(row.argmax())], words)} with {row.max():.0%}."
        )
        return markup.row(picture, f'<div style="max-width:34em">{chips}{markup.note(told)}</div>')

    def first(self, queries: list[str], words: list[str], grid: tuple[int, int], study: int) -> str:
        """What asks until something is picked: the middle patch, a word in the middle, or a finding that is there."""
        height, width = grid
        centre = f"patch {height // 2 * width + width // 2}"
        if centre in queries:
            return centre
        spelt = [f"word {i}" for i, word in enumerate(words) if len(word) > 3 and word.isalpha()]
        if spelt and spelt[0] in queries:
            return spelt[len(spelt) // 2]
        there = [finding.name for finding in self.collection.findings(study)]
        return next((name for name in there if name in queries), queries[0])

    @staticmethod
    def name(token: str, words: list[str]) -> str:
        return f"the word “{words[int(token.split()[1])]}”" if token.startswith("word") else token

    def picture(self, image: Tensor, grid: tuple[int, int], share: dict, source: Source, query: str) -> str:
        """The image, with the patches' shares over it, and a grid of patches to pick where patches can ask."""
        height, width = grid
        cells = [share.get(f"patch {i}", 0.0) for i in range(height * width)]
        read = any(f"patch {i}" in share for i in range(height * width))
        heat = np.reshape(cells, grid) if read else None
        composed = markup.compose(
            image, heat=heat, scale=(0.0, max(*cells, 1e-9)), colours=markup.SEQUENTIAL, side=SIDE
        )
        figure = markup.figure(
            composed, alt=f"Phantom radiograph{' with a map of what is read' if read else ''}, asked by {query}",
            caption="Bright: read from most. Pick a patch to let it ask." if "patch 0" in source.queries else
            ("Bright: read from most." if read else "This layer does not read the image."),
        )  # fmt: skip
        if "patch 0" not in source.queries:
            return figure
        spots = []
        for i in range(height * width):
            y, x = divmod(i, width)
            place = f"position:absolute;left:{x / width:.2%};top:{y / height:.2%};width:{1 / width:.2%};height:{1 / height:.2%}"
            ring = "outline:2px solid #56B4E9;outline-offset:-2px;" if query == f"patch {i}" else ""
            spots.append(
                f'<span role="button" tabindex="0" data-pick="patch {i}" aria-label="patch {i}, row {y + 1}, column {x + 1}" '
                f'aria-pressed="{"true" if query == f"patch {i}" else "false"}" style="{place};{ring}cursor:pointer"></span>'
            )
        over = f'<div style="position:absolute;left:0;top:0;width:{SIDE}px;height:{SIDE}px">{"".join(spots)}</div>'
        return f'<div style="position:relative;display:inline-block">{figure}{over}</div>'

    def words(self, words: list[str], share: dict, source: Source, query: str) -> str:
        asks = "word 0" in source.queries
        told = "The text. Pick a word to let it ask:" if asks else "The text:"
        return markup.note(told) + self.chips({f"word {i}": word for i, word in enumerate(words)}, share, source, query)

    @staticmethod
    def chips(names: dict[str, str], share: dict, source: Source, query: str) -> str:
        """Words in a line, shaded by their shares, to be picked where they can ask."""
        top, made = max([share.get(name, 0.0) for name in names] or [0.0]) or 1.0, []
        for name, word in names.items():
            if name in share:
                chip = markup.shaded(html.escape(word), share[name], scale=(0.0, top), title=f"{share[name]:.3f}")
            else:
                chip = f'<span title="not read by this layer" style="padding:0 0.25em">{html.escape(word)}</span>'
            made.append(markup.pickable(chip, name, chosen=name == query) if name in source.queries else chip)
        return f'<p style="line-height:1.9;margin:0.2em 0">{" ".join(made)}</p>'


def attention_explorer(run: Run, collection: Collection, *, study: int = 0) -> Explorer:
    """Explore every attention layer of `run` that runs on a study of `collection`: encoders, fusion, query decoder."""
    import ipywidgets as widgets

    from .shell import Explorer

    view = Attention(run, collection)
    titles = view.titles()
    heads = max(len(source.weights) for source in view.of(study)[3].values())
    favourite = next((title for title in titles if "to patches" in title), titles[0])
    controls = {
        "study": widgets.IntSlider(
            value=study, min=0, max=len(collection) - 1, description="study", continuous_update=False
        ),
        "layer": widgets.Dropdown(
            options=titles, value=favourite, description="layer", layout=widgets.Layout(width="22em")
        ),
        "head": widgets.Dropdown(options=[MEAN, *map(str, range(1, heads + 1))], value=MEAN, description="head"),
    }
    return Explorer(view, controls, title="Where does a layer look?", picked="")
