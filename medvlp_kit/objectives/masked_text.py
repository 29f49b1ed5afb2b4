"""Masked language modelling: hide some words, predict them from what is left, and from the image where there is one.

Devlin et al., "BERT" (arXiv 1810.04805): 15 % of the tokens, of which 80 % become [MASK], 10 % a random token and 10 %
stay. Khare et al., "MMBERT" (arXiv 2104.01394): medical words only, always [MASK], with the image in view. Moon et al.,
"MedViLL" (arXiv 2105.11333) and Chen et al., "M3AE" (arXiv 2209.07098) use BERT's rule on image and report together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoders.features import TextFeatures
from ..errors import KitError, unknown
from ..study import Tokens
from . import Objective, ObjectiveOutput
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from ..fusion.features import FusedFeatures
    from ..model import ForwardPass, VisionLanguageModel

UNITS = ("token", "word")
WHICH = ("all", "medical")
BERT_RULE = (0.8, 0.1)  # shares that become [MASK] and a random token; the rest stays
ALWAYS_MASK = (1.0, 0.0)


def choose_tokens(maskable: Tensor, starts: Tensor, *, ratio: float, generator: torch.Generator | None) -> Tensor:
    """Which tokens to hide: (B, T) bool, an exact count a text, all pieces of a word together.

    maskable: (B, T) bool, False on special and padded tokens. starts: (B, T) int64, the position of the first piece of
    each token's word; `arange(T)` in every row makes each token a word of its own. With n maskable words (those whose
    first piece is maskable) exactly max(1, round(ratio * n)) of them are chosen, uniformly; none where n = 0.
    """
    if maskable.ndim != 2 or maskable.dtype != torch.bool or starts.shape != maskable.shape:
        raise KitError(f"maskable {maskable.dtype} {tuple(maskable.shape)}, starts {tuple(starts.shape)}: both are (B, T)")
    if not 0 < ratio <= 1:
        raise KitError(f"the ratio of hidden words is {ratio}: choose it above 0 and at most 1")
    places = torch.arange(maskable.shape[1], device=maskable.device)
    first = maskable & (starts == places)  # (B, T) one True a word
    count = (ratio * first.sum(dim=1).double()).round().clamp(min=1)  # (B,)
    device = maskable.device if generator is None else generator.device
    lots = torch.rand(maskable.shape, generator=generator, device=device).to(maskable.device)
    ranks = lots.masked_fill(~first, 2.0).argsort(dim=1).argsort(dim=1)  # (B, T)
    chosen = first & (ranks < count[:, None])
    return chosen.gather(1, starts) & maskable


def hide_tokens(
    ids: Tensor, chosen: Tensor, *, mask_id: Tensor | int, replaceable: Tensor, rule: tuple[float, float] = BERT_RULE,
    generator: torch.Generator | None,
) -> Tensor:  # fmt: skip
    """The text as the model gets to see it: (B, T) ids, changed at the chosen tokens only.

    Each chosen token becomes [MASK] with chance `rule[0]`, a token drawn uniformly from the vocabulary with chance
    `rule[1]`, else it stays. replaceable: (V,) bool, the tokens that may be drawn.
    """
    if min(rule) < 0 or sum(rule) > 1 + 1e-9:
        raise KitError(f"rule {rule}: the shares of [MASK] and of random tokens are at least 0 and together at most 1")
    device = ids.device if generator is None else generator.device
    lots = torch.rand((2, *ids.shape), generator=generator, device=device).to(ids.device)
    order = replaceable.long().argsort(descending=True, stable=True)  # the replaceable ids first, in order
    number = (lots[1] * replaceable.sum()).long()
    randoms = order[number.minimum(replaceable.sum() - 1).clamp(min=0)]  # (B, T)
    hidden = torch.where(lots[0] < rule[0], mask_id, torch.where(lots[0] < sum(rule), randoms, ids))
    return torch.where(chosen, hidden, ids)


def masked_language_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """-mean over the hidden tokens m of log p(w_m | the rest). logits (M, V), targets (M,) int64; zero where M = 0.

    Near ln V before training. Source: Devlin et al. 2019, section 3.1.
    """
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise KitError(f"logits {tuple(logits.shape)}, targets {tuple(targets.shape)}: give (M, V) and (M,), hidden tokens only")
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits, targets, reduction="sum") / max(1, len(targets))


@dataclass(frozen=True)
class MaskedText:
    """tokens: what the model sees; chosen (B, T) bool: where something was asked; original (B, T): the true ids."""

    tokens: Tokens
    chosen: Tensor
    original: Tensor


class TextMasking(nn.Module):
    """How a text is hidden. Two objectives that mask in the same way share one masked view of a `ForwardPass`.

    unit: "token" (BERT) or "word" (all pieces of a word together). which: "all" words or the "medical" ones; a text
    without a medical word has nothing hidden. rule: `BERT_RULE` or `ALWAYS_MASK` (MMBERT).
    """

    def __init__(
        self, vocabulary_size: int, *, ratio: float = 0.15, unit: str = "token", which: str = "all",
        rule: tuple[float, float] = BERT_RULE, words: Iterable[str] | None = None,
    ):  # fmt: skip
        super().__init__()
        if unit not in UNITS:
            raise unknown("unit of masking", unit, UNITS)
        if which not in WHICH:
            raise unknown("choice of words", which, WHICH)
        self.ratio, self.unit, self.which, self.rule = ratio, unit, which, tuple(rule)
        self.vocabulary = Vocabulary(vocabulary_size, words=words)

    @property
    def key(self) -> tuple:
        """What tells this way of masking from another one within a forward pass."""
        return ("masked text", self.ratio, self.unit, self.which, self.rule, self.vocabulary.words)

    def forward(self, tokens: Tokens, *, generator: torch.Generator | None = None) -> MaskedText:
        ids, vocabulary = tokens.ids, self.vocabulary
        maskable = tokens.mask & ~vocabulary.special[ids]
        if self.unit == "word" or self.which == "medical":
            vocabulary.must_be_read()
        starts = vocabulary.word_starts(ids)
        if self.which == "medical":
            maskable = maskable & vocabulary.is_medical(ids, starts)
        if self.unit == "token":
            starts = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        chosen = choose_tokens(maskable, starts, ratio=self.ratio, generator=generator)
        seen = hide_tokens(
            ids, chosen, mask_id=vocabulary.mask_id, replaceable=~vocabulary.special, rule=self.rule, generator=generator
        )
        return MaskedText(Tokens(seen, tokens.mask), chosen, ids)

    def view(self, forward_pass: ForwardPass) -> MaskedText:
        """The masked principal text of this batch, drawn once from torch's global generator."""
        return forward_pass.cached(self.key, lambda: self(forward_pass.batch.tokens))

    def features(self, forward_pass: ForwardPass) -> TextFeatures:
        """The text encoder's features of `view`."""
        return forward_pass.cached((self.key, "text"), lambda: forward_pass.model.encode_text(self.view(forward_pass).tokens))

    def fused(self, forward_pass: ForwardPass) -> FusedFeatures:
        """`features` after they have met the whole image."""
        return forward_pass.cached(
            (self.key, "fused"), lambda: forward_pass.model.fuse(forward_pass.image, self.features(forward_pass))
        )


class TokenHead(nn.Sequential):
    """Scores of every token of the vocabulary: (..., D) -> (..., V). Linear, GELU, norm, linear, as BERT's head."""

    def __init__(self, width: int, vocabulary_size: int):
        super().__init__(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, vocabulary_size))
        nn.init.normal_(self[-1].weight, std=0.02)
        nn.init.zeros_(self[-1].bias)


def predict_hidden(head: nn.Module, tokens: Tensor, masked: MaskedText) -> ObjectiveOutput:
    """Loss of the hidden tokens, from token features (B, T, D); only they go through the head, which is most of the cost."""
    logits, targets = head(tokens[masked.chosen]), masked.original[masked.chosen]  # (M, V), (M,)
    with torch.no_grad():
        right = (logits.argmax(dim=-1) == targets).sum() / max(1, len(targets))
        share = masked.chosen.sum() / masked.tokens.mask.sum().clamp(min=1)
    return ObjectiveOutput(masked_language_loss(logits, targets), {"hidden words found": right, "tokens hidden": share})


class MaskedLanguage(Objective):
    """Predict hidden words; with `fused` from image and text after fusion, else from the text alone.

    model: the model it is for; sizes are read from it, nothing of it is kept. Options as in `TextMasking`. The fusion
    "none" never lets a word see a patch: with it the image cannot help, which makes it a control.
    """

    name = "masked language"

    def __init__(self, model: VisionLanguageModel, *, fused: bool = True, **masking):
        super().__init__()
        if fused and model.fusion is None:
            raise KitError("masked language with fused=True needs a fusion: give the recipe one, or fused=False")
        self.fused = fused
        self.masking = TextMasking(model.text_encoder.vocabulary_size, **masking)
        width = model.fusion.width if fused else model.text_encoder.width
        self.head = TokenHead(width, model.text_encoder.vocabulary_size)

    def read_tokenizer(self, tokenizer) -> None:
        """Whole-word and medical-word masking need to know the tokenizer; others do not."""
        self.masking.vocabulary.read(tokenizer)

    def forward(self, forward_pass: ForwardPass) -> ObjectiveOutput:
        features = self.masking.fused(forward_pass) if self.fused else self.masking.features(forward_pass)
        return predict_hidden(self.head, features.tokens, self.masking.view(forward_pass))
