"""Type a query and see the images it finds; type an affirming and a denying prompt and see what they tell apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ..downstream.classification import auroc
from ..downstream.encode import Encoded, encode_collection, encode_texts, similarity
from ..downstream.ranking import best_columns
from ..errors import KitError
from ..study import Collection
from . import markup

if TYPE_CHECKING:
    from ..run_folder import Run
    from .shell import Explorer

FOUND = 6  # images shown for a query


def unknown_words(tokenizer, text: str) -> bool:
    """Whether the tokenizer has to leave out something of the text."""
    unknown = getattr(tokenizer, "unk_id", None)
    return unknown is not None and bool((tokenizer.encode([text], length=64).ids == unknown).any())


class Bench:
    """The pure functions, with the gallery encoded once; each text is encoded once in its life."""

    def __init__(self, run: Run, collection: Collection, encoded: Encoded, images: torch.Tensor):
        self.run, self.collection, self.encoded, self.images = run, collection, encoded, images
        self.known: dict[str, torch.Tensor] = {}

    def scores(self, text: str) -> torch.Tensor:
        """The model's similarity of every image with `text`, (N,)."""
        text = text.strip()
        if not text:
            raise KitError("the prompt is empty: type a sentence, such as 'There is a pneumothorax.'")
        if text not in self.known:
            features = encode_texts(self.run.model, self.run.tokenizer, [text], length=self.run.budget.text_length)
            self.known[text] = similarity(self.run.model, self.encoded.image, features)[:, 0]
        return self.known[text]

    def search(self, *, query: str) -> str:
        """The best images for a query, each with its true findings and its score."""
        scores = self.scores(query)
        best = best_columns(scores[None], FOUND)[0].tolist()
        tiles = []
        for rank, index in enumerate(best, start=1):
            found = ", ".join(said(finding) for finding in self.collection.findings(index)) or "no finding"
            tiles.append(
                markup.tile(
                    self.images[index], side=148, alt=f"Result {rank} for the query: study {index} with {found}",
                    caption=f"{rank}. {scores[index]:.3f}: {found}",
                )
            )  # fmt: skip
        spread = f"All {len(scores)} images score from {scores.min():.3f} to {scores.max():.3f}."
        return markup.row(*tiles) + markup.note(spread) + self.warning(query)

    def compare(self, *, finding: str, affirms: str, denies: str) -> str:
        """How the difference of two prompts is distributed with and without a finding, and the AUROC of it."""
        names = list(self.encoded.label_names)
        if finding not in names:
            raise KitError(f"{finding!r} is no label of these data: choose one of {', '.join(names)}")
        labels = self.encoded.labels[:, names.index(finding)].numpy()
        difference = (self.scores(affirms) - self.scores(denies)).numpy()
        with_it, without = difference[labels == 1], difference[labels == 0]
        if not len(with_it) or not len(without):
            raise KitError(f"{finding} is present in {len(with_it)} and absent in {len(without)} studies: both are needed")
        area = auroc(difference, labels)
        alone = auroc(self.scores(affirms).numpy(), labels)
        chart = markup.histogram(
            {f"with it ({len(with_it)})": with_it, f"without ({len(without)})": without},
            alt=f"Two distributions of the score for {finding}: mean {with_it.mean():.3f} with it, {without.mean():.3f} without",
            caption=f"Score of the affirming minus score of the denying prompt. AUROC {area:.3f}; 0.5 is chance.",
            x_label="difference of the two scores",
        )
        told = f"The affirming prompt alone: AUROC {alone:.3f}. What the denying prompt adds: {area - alone:+.3f}."
        right = float(np.mean(np.concatenate([with_it > 0, without <= 0])))
        return chart + markup.note(told) + markup.note(f"Decided at zero, {right:.0%} are right.") + self.warning(affirms, denies)

    def warning(self, *texts: str) -> str:
        strange = [text for text in texts if unknown_words(self.run.tokenizer, text)]
        return markup.note(f"The tokenizer does not know all of {strange[0]!r}.") if strange else ""


def said(finding) -> str:
    """'left lower pleural effusion (possible)'."""
    words = [finding.side, finding.zone, finding.name.lower()]
    doubt = " (possible)" if finding.status == "uncertain" else ""
    return " ".join(word for word in words if word) + doubt


def _bench(run: Run, collection: Collection) -> Bench:
    encoded = encode_collection(run.model, run.tokenizer, collection, budget=run.budget, text=run.recipe.texts[0])
    return Bench(run, collection, encoded, collection.images(range(len(collection)), size=run.budget.image_size))


def retrieval_bench(run: Run, collection: Collection, *, query: str = "There is a left pneumothorax.") -> Explorer:
    """Type a sentence, see the images that `run` finds for it among `collection`."""
    import ipywidgets as widgets

    from .shell import Explorer

    layout = widgets.Layout(width="min(32em, 95%)")
    control = widgets.Text(value=query, description="query", continuous_update=False, layout=layout)
    return Explorer(_bench(run, collection).search, {"query": control}, title="Find images with a sentence")


def prompt_bench(run: Run, collection: Collection, *, finding: str | None = None) -> Explorer:
    """Type prompts for a finding of `collection` and see how well `run` tells its studies apart with them."""
    import ipywidgets as widgets

    from ..downstream.prompts import negatives, phrases
    from .shell import Explorer

    if not collection.label_names:
        raise KitError(f"{collection.name} has no labels: the prompt bench scores prompts against labels")
    finding = finding or collection.label_names[0]
    layout = widgets.Layout(width="min(32em, 95%)")
    controls = {
        "finding": widgets.Dropdown(options=list(collection.label_names), value=finding, description="finding"),
        "affirms": widgets.Text(value=phrases(finding)[0], description="affirms", continuous_update=False, layout=layout),
        "denies": widgets.Text(value=negatives(finding)[0], description="denies", continuous_update=False, layout=layout),
    }
    explorer = Explorer(_bench(run, collection).compare, controls, title="Prompts on the bench")

    def renew(change) -> None:  # another finding comes with its own first prompts
        explorer.set(affirms=phrases(change["new"])[0], denies=negatives(change["new"])[0])

    controls["finding"].unobserve_all("value")
    controls["finding"].observe(renew, names="value")
    return explorer
