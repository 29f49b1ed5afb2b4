"""Image-text matching: after fusion, do this image and this text belong together? (ALBEF, MedViLL, M3AE, PTUnifier)

The answer is learned from true pairs and from wrong ones. Wrong pairs that are easy teach little, so ALBEF draws them
by similarity (Li et al., "Align before fuse", NeurIPS 2021, section 3.2). In medicine that finds the very pairs that
are not wrong at all, two normal reports for example, so known true matches can be forbidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoders.features import ImageFeatures, TextFeatures
from ..errors import KitError, unknown
from . import Objective, ObjectiveOutput

if TYPE_CHECKING:
    from ..fusion.features import FusedFeatures
    from ..model import ForwardPass, VisionLanguageModel
    from ..study import Batch

IGNORED = -100  # the label of a pair that does not count
NEGATIVES = ("hard", "random")
FORBIDDEN = ("same_text", "same_labels")


def hard_negatives(
    similarity: Tensor, *, forbid: Tensor | None = None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """One wrong text for each image and one wrong image for each text, drawn by how similar they are.

    similarity: (B images, B texts), already divided by the temperature; pair (i, i) is true. forbid: (B, B) bool, True
    for further pairs that must not be drawn. With a_ij = 1 for the allowed pairs,

        P(text j | image i) = a_ij exp(s_ij) / sum_k a_ik exp(s_ik)        and the same down each column

    Returns (texts (B,), images (B,)): image i goes with texts[i], text j with images[j]. A row or column in which
    nothing is allowed gives -1. The draw is the Gumbel-max trick, argmax_j(s_ij + g_ij) over the allowed j, which
    needs no exponential: the published softmax underflows to a row of zeros when the true pair dominates, and
    `torch.multinomial` then stops the run. float16, infinite and NaN similarities are all drawn from safely (NaN as
    the lowest). `generator` None uses torch's global one; no gradient, no wait for the device.
    """
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
        raise KitError(f"similarity has shape {tuple(similarity.shape)}: give (B, B), the true pairs on the diagonal")
    closed = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    if forbid is not None:
        if forbid.shape != similarity.shape or forbid.dtype != torch.bool:
            raise KitError(f"forbid is {forbid.dtype} {tuple(forbid.shape)}: give bool {tuple(similarity.shape)}")
        closed = closed | forbid
    # Far inside float32: adding the noise can neither overflow nor reach the minus infinity of a closed pair.
    scores = similarity.detach().float().nan_to_num(nan=-1e30).clamp(-1e30, 1e30)
    return _draw(scores, closed, generator), _draw(scores.T, closed.T, generator)


def matching_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of match (1) against mismatch (0): mean over the pairs whose label is not `IGNORED`; else zero.

    logits: (P, 2), labels: (P,) int64. At chance between equal numbers the loss is ln 2; for one true pair to two
    wrong ones, as ALBEF draws them, it is 0.637, the entropy of (1/3, 2/3).
    """
    if logits.ndim != 2 or logits.shape[1] != 2 or labels.shape != logits.shape[:1]:
        raise KitError(f"logits {tuple(logits.shape)}, labels {tuple(labels.shape)}: give (P, 2) and (P,)")
    total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def same_text(batch: Batch) -> Tensor:
    """(B, B) bool: the two principal texts are the same, token for token (so no wrong pair can be made of them)."""
    ids = batch.tokens.ids.masked_fill(~batch.tokens.mask, 0)  # (B, T)
    return (ids[:, None] == ids[None]).all(dim=-1)


def same_labels(batch: Batch) -> Tensor:
    """(B, B) bool: the same findings, unknown counting as a third value; MedViLL's rule for what is not a negative."""
    labels = batch.labels.nan_to_num(nan=-1.0)  # (B, F)
    return (labels[:, None] == labels[None]).all(dim=-1)


class ImageTextMatching(Objective):
    """`matching_loss` on B true pairs, B images with a wrong text and B texts with a wrong image.

    width: of the fused features. negatives: "hard" draws by the similarity of the pooled embeddings at the model's
    temperature, as ALBEF does; "random" draws uniformly, as M3AE and PTUnifier do. forbid: "same_text", "same_labels"
    or None. Negatives come from the process's own batch, as in ALBEF. A row without an allowed negative is left out.

    Hard negatives draw some images and texts far more often than others, and which ones can be told from one modality
    alone. So a loss below 0.637 does not prove that the pairing is read; with random negatives it does.
    """

    name = "matching"

    def __init__(self, width: int, *, negatives: str = "hard", forbid: str | None = "same_text"):
        super().__init__()
        if negatives not in NEGATIVES:
            raise unknown("kind of negatives", negatives, NEGATIVES)
        if forbid is not None and forbid not in FORBIDDEN:
            raise unknown("rule for forbidden pairs", forbid, FORBIDDEN)
        self.negatives, self.forbid = negatives, forbid
        self.head = nn.Linear(width, 2)

    def scorer(self) -> MatchingScorer:
        """The same head as a scorer of every image with every text, for `VisionLanguageModel.score_with`."""
        return MatchingScorer(self.head)

    def score(self, fused: FusedFeatures) -> Tensor:
        """How much each pair looks like a match: log odds (B,), positive for a match."""
        return log_odds(self.head, fused)

    def forward(self, forward_pass: ForwardPass) -> ObjectiveOutput:
        image, text = forward_pass.image, forward_pass.text
        wrong_texts, wrong_images = forward_pass.cached("hard negatives", lambda: self.draw(forward_pass))
        everyone = torch.arange(len(wrong_texts), device=wrong_texts.device)
        # All wrong pairs go through the fusion in one call. -1 reads row 0 and is then ignored, so shapes stay fixed.
        images = torch.cat([everyone, wrong_images.clamp(min=0)])  # (2 B,)
        texts = torch.cat([wrong_texts.clamp(min=0), everyone])  # (2 B,)
        wrong = forward_pass.model.fuse(_take_image(image, images), _take_text(text, texts))
        logits = self.head(torch.cat([forward_pass.fused.pooled, wrong.pooled]))  # (3 B, 2)
        drawn = torch.cat([wrong_texts, wrong_images]) >= 0
        labels = torch.cat([torch.ones_like(everyone), torch.where(drawn, 0, IGNORED)])  # (3 B,)
        with torch.no_grad():
            right = logits.argmax(dim=1) == labels
            logs = {
                "true pairs accepted": right[: len(everyone)].float().mean(),
                "wrong pairs rejected": right[len(everyone) :].sum() / drawn.sum().clamp(min=1),
                "without a negative": 1 - drawn.float().mean(),
            }
        return ObjectiveOutput(matching_loss(logits, labels), logs)

    @torch.no_grad()
    def draw(self, forward_pass: ForwardPass) -> tuple[Tensor, Tensor]:
        """Wrong texts (B,) and wrong images (B,) of this batch, from torch's global generator."""
        similarity = forward_pass.image_embedding @ forward_pass.text_embedding.T / forward_pass.model.temperature()
        if self.negatives == "random":
            similarity = torch.zeros_like(similarity)
        rules = {"same_text": same_text, "same_labels": same_labels}
        forbid = None if self.forbid is None else rules[self.forbid](forward_pass.batch)
        return hard_negatives(similarity, forbid=forbid, generator=None)


def log_odds(head: nn.Module, fused: FusedFeatures) -> Tensor:
    """How much each fused pair looks like a match, (B,): log p(match) / p(mismatch)."""
    logits = head(fused.pooled)  # (B, 2)
    return logits[:, 1] - logits[:, 0]


class MatchingScorer(nn.Module):
    """Ranks by matching: forward(model, image, text) -> log odds (N images, M texts), each pair fused.

    A dual encoder compares N + M vectors; this fuses N * M pairs, `pairs` of them at a time.
    """

    def __init__(self, head: nn.Module, *, pairs: int = 2048):
        super().__init__()
        self.head, self.pairs = head, pairs

    def forward(self, model: VisionLanguageModel, image: ImageFeatures, text: TextFeatures) -> Tensor:
        images, texts = len(image.pooled), len(text.pooled)
        rows = torch.arange(images * texts, device=image.pooled.device)
        scores = [
            log_odds(self.head, model.fuse(_take_image(image, part // texts), _take_text(text, part % texts)))
            for part in rows.split(self.pairs)
        ]
        return torch.cat(scores).view(images, texts)


def _draw(scores: Tensor, closed: Tensor, generator: torch.Generator | None) -> Tensor:
    device = scores.device if generator is None else generator.device
    noise = torch.empty(scores.shape, device=device).exponential_(generator=generator).to(scores.device)
    gumbel = -noise.clamp(min=torch.finfo(noise.dtype).tiny).log()
    chosen = (scores + gumbel).masked_fill(closed, -torch.inf).argmax(dim=1)  # (B,)
    return chosen.masked_fill(closed.all(dim=1), -1)


def _take_image(image: ImageFeatures, rows: Tensor) -> ImageFeatures:
    return ImageFeatures(image.pooled[rows], image.patches[rows], image.grid)


def _take_text(text: TextFeatures, rows: Tensor) -> TextFeatures:
    return TextFeatures(text.pooled[rows], text.tokens[rows], text.mask[rows])
