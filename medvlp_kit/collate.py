"""From studies to one `Batch`: the same function for phantoms and real data, for training and for evaluation.

Nothing here keeps state: a batch is a pure function of the collection, the indices and the seed, so a run that is
resumed, split over processes or read by background workers sees exactly the same batches.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import KitError, unknown
from .study import Batch, Collection, Report, Tokenizer

if TYPE_CHECKING:
    from .augment.pairs import Policy

TEXTS = ("report", "sentence", "findings", "impression")


def choose_text(report: Report, kind: str, *, seed: int, index: int) -> str:
    """One text of a report: all of it, a section (all of it where the section is missing), or one random sentence."""
    if kind not in TEXTS:
        raise unknown("text", kind, TEXTS)
    if kind == "findings":
        return report.findings or report.text
    if kind == "impression":
        return report.impression or report.text
    if kind == "sentence":
        from .text import sentences

        body = f"{report.findings} {report.impression}".strip() or report.text
        choices = sentences(body) or [report.text]
        return random.Random(f"{seed}:{index}").choice(choices)
    return report.text


def collate(
    collection: Collection,
    indices: Sequence[int],
    *,
    tokenizer: Tokenizer,
    image_size: int,
    text_length: int,
    views: Sequence[str] = ("frontal",),
    texts: Sequence[str] = ("report",),
    seed: int = 0,
    findings: bool = False,
    augment: Policy | None = None,
) -> Batch:
    """The batch of studies `indices`.

    views: names of views, images (B, C, image_size, image_size); texts: kinds of text (see `TEXTS`), tokens (B, T).
    The first of each is the pair a contrastive objective aligns. "frontal x2" is the frontal view at twice the size.
    `seed` draws the random sentences; pass a different one each epoch. findings: also bring each study's statements.
    augment: a policy of `medvlp_kit.augment`, applied before a text is chosen; its chance is a function of `seed` and of
    all studies of the batch.
    """
    indices = tuple(int(i) for i in indices)
    if augment is not None:
        from .augment.collection import augmented

        collection = augmented(collection, indices, augment, size=image_size, views=views, seed=seed)
    reports = [collection.report(i) for i in indices]
    strings = {kind: [choose_text(r, kind, seed=seed, index=i) for r, i in zip(reports, indices)] for kind in texts}
    return Batch(
        indices=indices,
        views={view: _images(collection, indices, image_size, view) for view in views},
        texts={kind: tokenizer.encode(chosen, length=text_length) for kind, chosen in strings.items()},
        sentences=tuple(next(iter(strings.values()))),
        labels=collection.labels(indices),
        label_names=collection.label_names,
        findings=tuple(collection.findings(i) for i in indices) if findings else (),
    )


def _images(collection: Collection, indices: Sequence[int], size: int, view: str):
    name, _, times = view.partition(" x")
    if times and not times.isdigit():
        raise KitError(f"view {view!r}: write the size as a whole number, as in 'frontal x2'")
    return collection.images(indices, size=size * int(times or 1), view=name)
