"""Knowledge-guided queries: ask the image about each finding by name, with the text as the question.

Wu et al., "MedKLIP: medical knowledge enhanced language-image pre-training" (arXiv 2301.02228): reports are reduced to
(entity, position, existence); a transformer decoder has one query for each entity, made from its description, which
looks at the patches and answers whether the entity is there and where. Zhang et al., "KAD" (arXiv 2302.14042) add
contrast with the report's entities. A query is text, so a finding never trained on can be asked for.

Both are taught by labels read off the report: compare them with systems that see the report alone with that in mind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoders.features import ImageFeatures
from ..encoders.layers import Block
from ..errors import KitError
from ..fusion.inputs import sine_positions
from ..phantoms.scene import FINDINGS, SIDES, ZONES
from ..study import ABSENT, PRESENT, Finding, Tokens
from . import Objective, ObjectiveOutput

if TYPE_CHECKING:
    from ..model import ForwardPass, VisionLanguageModel

IGNORED = -100  # the position of an entity that is absent, or of which no place is stated
Place = tuple[str | None, str | None]  # side, zone
PLACES: tuple[Place, ...] = tuple(
    place for place in product((*SIDES, "bilateral", None), (*ZONES, None)) if place != (None, None)
)  # side x zone, each of the two may be unstated
QUERY_LENGTH = 32  # tokens of a description, at most

DESCRIPTIONS = {
    "Enlarged Cardiomediastinum": "widening of the mediastinum",
    "Cardiomegaly": "cardiomegaly, enlargement of the heart",
    "Lung Lesion": "nodule or mass, a rounded lung lesion",
    "Edema": "pulmonary edema, interstitial markings are increased",
    "Consolidation": "consolidation, airspace opacity with air bronchograms",
    "Atelectasis": "atelectasis, linear opacity with volume loss",
    "Pneumothorax": "pneumothorax, air in the pleural space without lung markings",
    "Pleural Effusion": "pleural effusion, fluid blunting the costophrenic angle",
    "Fracture": "fracture of a rib",
    "Support Devices": "support device, catheter, tube or pacemaker",
}


def describe_place(place: Place) -> str:
    """("left", "lower") -> "located in the left lower zone", as MedKLIP words its positions."""
    side, zone = place
    if side == "bilateral":
        return f"located in both {zone} zones" if zone else "located in both lungs"
    words = [word for word in (side, zone) if word]
    return f"located in the {' '.join(words)} {'zone' if zone else 'lung'}"


@dataclass(frozen=True)
class EntityTargets:
    """existence (B, E) float: 1 present, 0 absent, NaN not to be asked; place (B, E) int64 into `PLACES`, or IGNORED."""

    existence: Tensor
    place: Tensor

    def to(self, device) -> EntityTargets:
        return EntityTargets(self.existence.to(device), self.place.to(device))


def entity_targets(
    findings: Sequence[Sequence[Finding]], entities: Sequence[str] = FINDINGS, *, unmentioned: float = 0.0
) -> EntityTargets:
    """What is stated of each entity in each study. Only an entity that is present has a place.

    An uncertain statement is not asked for; where statements of one entity differ, present outweighs uncertain and
    uncertain outweighs absent, left with right makes bilateral, and zones that differ leave the zone unstated.
    unmentioned: 0 takes silence for absence, as phantoms mean it; NaN does not ask, for labels read off real reports.
    """
    existence = torch.full((len(findings), len(entities)), float(unmentioned))
    place = torch.full((len(findings), len(entities)), IGNORED)
    column = {name: number for number, name in enumerate(entities)}
    for row, study in enumerate(findings):
        said: dict[str, list[Finding]] = {}
        for finding in study:
            if finding.name in column:
                said.setdefault(finding.name, []).append(finding)
        for name, statements in said.items():
            present = [each for each in statements if each.status == PRESENT]
            absent = all(each.status == ABSENT for each in statements)
            existence[row, column[name]] = 1.0 if present else 0.0 if absent else float("nan")
            where = (_one(present, "side", "bilateral"), _one(present, "zone", None))
            if where in PLACES:
                place[row, column[name]] = PLACES.index(where)
    return EntityTargets(existence, place)


def existence_loss(logits: Tensor, existence: Tensor) -> Tensor:
    """Binary cross-entropy over the entities asked for: logits (B, E), existence (B, E) in {0, 1, NaN}; else zero.

    Two classes and a softmax, as MedKLIP has it, is the same function of the difference of the two logits. Near ln 2
    before training.
    """
    asked = ~existence.isnan()
    losses = F.binary_cross_entropy_with_logits(logits, existence.nan_to_num(), reduction="none")
    return losses.masked_fill(~asked, 0.0).sum() / asked.sum().clamp(min=1)


def place_loss(logits: Tensor, place: Tensor) -> Tensor:
    """Cross-entropy of the stated place among all: logits (B, E, P), place (B, E), IGNORED left out; zero where all are.

    MedKLIP contrasts the true position with seven drawn from its 51; with 15 places all can be had. Near ln 15 before
    training.
    """
    total = F.cross_entropy(logits.flatten(0, 1), place.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / (place != IGNORED).sum().clamp(min=1)


class EntityQueries(Objective):
    """loss = existence + place_weight * place, for every entity, from a decoder whose queries are text.

    model: the model it is for; sizes are read from it, nothing of it is kept. entities: name -> description. Batches
    must bring findings (`collate(..., findings=True)`) and the tokenizer must have been read once.
    train_text: MedKLIP's queries come from a frozen, pretrained text encoder. Here that encoder starts at random, so by
        default it learns with the rest; False keeps it out.
    layers, heads, width: of the decoder (MedKLIP: 4, 4, 256).

    Pool the text by "mean": the class token of an untrained encoder is nearly the same for every description (cosine
    above 0.9999), and queries that are alike take long to part.
    """

    name = "entity queries"

    def __init__(
        self, model: VisionLanguageModel, *, entities: dict[str, str] | None = None, place_weight: float = 1.0,
        unmentioned: float = 0.0, train_text: bool = True, width: int | None = None, layers: int = 2, heads: int = 4,
    ):  # fmt: skip
        super().__init__()
        self.entities = dict(DESCRIPTIONS if entities is None else entities)
        self.place_weight, self.unmentioned, self.train_text = place_weight, unmentioned, train_text
        text_width = model.text_encoder.width
        width = width or text_width
        # descriptions, then places; tensors of a fixed size, so that a checkpoint brings them back
        count, length = len(self.entities) + len(PLACES), min(QUERY_LENGTH, model.text_encoder.length)
        self.register_buffer("query_ids", torch.zeros(count, length, dtype=torch.int64))
        self.register_buffer("query_mask", torch.zeros(count, length, dtype=torch.bool))
        self.from_text = nn.Linear(text_width, width)
        self.from_image = nn.Sequential(nn.Linear(model.image_encoder.width, width), nn.LayerNorm(width))
        self.blocks = nn.ModuleList(Block(width, heads, cross=True, context_width=width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.exists = nn.Linear(width, 1)
        nn.init.normal_(self.exists.weight, std=0.02)
        nn.init.zeros_(self.exists.bias)
        self.to_place = nn.Linear(width, text_width)

    def read_tokenizer(self, tokenizer) -> None:
        """Put the descriptions of entities and places into tokens."""
        self.query_ids.zero_()
        self.query_mask.zero_()
        tokens = self._encode(tokenizer, [*self.entities.values(), *map(describe_place, PLACES)])
        self.query_ids[:, : tokens.ids.shape[1]] = tokens.ids.to(self.query_ids.device)
        self.query_mask[:, : tokens.ids.shape[1]] = tokens.mask.to(self.query_ids.device)

    def queries(self, model: VisionLanguageModel, tokens: Tokens | None = None) -> Tensor:
        """Text embeddings (Q, text width), of the objective's own descriptions and places when `tokens` is None."""
        if tokens is None:
            longest = int(self.query_mask.any(dim=0).sum())  # the rest is padding for every query
            if not longest:
                raise KitError("the queries are not in tokens yet: call objective.read_tokenizer(tokenizer) first")
            tokens = Tokens(self.query_ids[:, :longest], self.query_mask[:, :longest])
        with torch.set_grad_enabled(self.train_text and torch.is_grad_enabled()):
            return model.encode_text(tokens).pooled

    def answer(self, image: ImageFeatures, queries: Tensor) -> Tensor:
        """What each query (Q, text width) found in each image: (B, Q, width)."""
        patches = self.from_image(image.patches)
        context = patches + sine_positions(image.grid, patches.shape[-1], device=patches.device).to(patches.dtype)
        found = self.from_text(queries).expand(len(patches), -1, -1)
        for block in self.blocks:
            found = block(found, context=context)
        return self.norm(found)

    def predict(self, model: VisionLanguageModel, image: ImageFeatures) -> tuple[Tensor, Tensor]:
        """Logits of existence (B, E) and of place (B, E, P), columns as `entities` and `PLACES`."""
        queries = self.queries(model)
        entities, places = queries[: len(self.entities)], queries[len(self.entities) :]
        found = self.answer(image, entities)  # (B, E, width)
        scores = self.to_place(found) @ places.T / places.shape[-1] ** 0.5  # (B, E, P)
        return self.exists(found)[..., 0], scores

    def ask(self, model: VisionLanguageModel, image: ImageFeatures, descriptions: Sequence[str], tokenizer) -> Tensor:
        """Logits of existence (B, Q) of anything that has a description, trained on or not.

        Queries see each other in the decoder, so each new one is asked alone, beside the trained ones.
        """
        known = self.queries(model)[: len(self.entities)]
        new = self.queries(model, self._encode(tokenizer, descriptions).to(known.device))
        answers = [self.answer(image, torch.cat([known, query[None]]))[:, -1] for query in new]
        return self.exists(torch.stack(answers, dim=1))[..., 0]

    def forward(self, forward_pass: ForwardPass) -> ObjectiveOutput:
        batch = forward_pass.batch
        if len(batch.findings) != len(batch):
            raise KitError("entity queries learn from findings: collate(..., findings=True), or Recipe(findings=True)")
        exists, places = self.predict(forward_pass.model, forward_pass.image)
        targets = entity_targets(batch.findings, tuple(self.entities), unmentioned=self.unmentioned).to(exists.device)
        with torch.autocast(exists.device.type, enabled=False):
            exists, places = (x if x.dtype == torch.float64 else x.float() for x in (exists, places))
            existence = existence_loss(exists, targets.existence.to(exists.dtype))
            place = place_loss(places, targets.place)
        with torch.no_grad():
            stated = targets.place != IGNORED
            placed = ((places.argmax(dim=-1) == targets.place) & stated).sum() / stated.sum().clamp(min=1)
        logs = {"existence": existence.detach(), "place": place.detach(), "places found": placed}
        return ObjectiveOutput(existence + self.place_weight * place, logs)

    def _encode(self, tokenizer, texts: Sequence[str]) -> Tokens:
        return tokenizer.encode(list(texts), length=self.query_ids.shape[1])


def _one(statements: list[Finding], field: str, several: str | None) -> str | None:
    values = {value for each in statements if (value := getattr(each, field)) is not None}
    return several if len(values) > 1 else next(iter(values), None)
