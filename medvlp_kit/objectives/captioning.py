"""Captioning: write the report word by word, from the image and the words so far.

    L = -mean over tokens t of log p(y_t | y_<t, image)

In training the true words stand before each one that is asked for (teacher forcing); afterwards the model has to go on
from its own words. The decoder is transformers' GPT-2 with cross-attention onto the image tokens, so that its
`generate` brings search, sampling and the key-value cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoders.features import ImageFeatures
from ..errors import KitError
from ..fusion.inputs import sine_positions
from ..fusion.single_stream import SingleStream
from ..text import CLS, PAD, SEP
from . import Objective, ObjectiveOutput
from .masked_text import TokenHead

if TYPE_CHECKING:
    from ..model import ForwardPass, VisionLanguageModel


def next_token_loss(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Teacher-forced cross-entropy: the scores at t are asked for the token at t + 1; padding is neither asked nor told.

    logits (B, T, V), ids (B, T) int64, mask (B, T) bool, True on real tokens, of which the first is given and the last,
    [SEP], is to be predicted too. Mean over all tokens asked for in the batch, near ln V before training.
    """
    if logits.ndim != 3 or logits.shape[:2] != ids.shape or mask.shape != ids.shape:
        shapes = f"logits {tuple(logits.shape)}, ids {tuple(ids.shape)}, mask {tuple(mask.shape)}"
        raise KitError(f"{shapes}: give (B, T, V), (B, T) and (B, T)")
    asked = mask[:, 1:] & mask[:, :-1]  # (B, T - 1)
    targets = ids[:, 1:].masked_fill(~asked, -100)
    scores = logits[:, :-1].flatten(0, 1)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    return F.cross_entropy(scores, targets.flatten(), ignore_index=-100, reduction="sum") / asked.sum().clamp(min=1)


def next_token_accuracy(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Share of tokens guessed right when all words before are the true ones; it flatters a model that then has to go on
    from its own. Shapes as in `next_token_loss`."""
    asked = mask[:, 1:] & mask[:, :-1]
    return ((logits[:, :-1].argmax(dim=-1) == ids[:, 1:]) & asked).sum() / asked.sum().clamp(min=1)


class CaptionDecoder(nn.Module):
    """GPT-2 that looks at image tokens in every layer.

    forward(image, ids (B, T), mask (B, T)) -> logits (B, T, V). length: the most tokens it can read or write.
    """

    def __init__(
        self, *, image_width: int, vocabulary_size: int, width: int = 128, layers: int = 2, heads: int = 4,
        length: int = 64, dropout: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        if width % heads:
            raise KitError(f"width {width} cannot be split among {heads} heads: choose a divisor of {width}")
        self.length = length
        self.project = nn.Sequential(nn.Linear(image_width, width), nn.LayerNorm(width))
        self.body = GPT2LMHeadModel(GPT2Config(
            vocab_size=vocabulary_size, n_embd=width, n_layer=layers, n_head=heads, n_positions=length,
            add_cross_attention=True, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
            bos_token_id=CLS, eos_token_id=SEP, pad_token_id=PAD,
        ))  # fmt: skip

    def context(self, image: ImageFeatures) -> Tensor:
        """What the words look at: (B, N, width), each patch with its position."""
        patches = self.project(image.patches)
        where = sine_positions(image.grid, patches.shape[-1], device=patches.device).to(patches.dtype)
        return patches + (where if image.places is None else where[image.places])

    def forward(self, image: ImageFeatures, ids: Tensor, mask: Tensor) -> Tensor:
        seen = {"encoder_hidden_states": self.context(image)}
        return self.body(input_ids=ids, attention_mask=mask.long(), use_cache=False, **seen).logits

    @torch.no_grad()
    def generate(self, image: ImageFeatures, *, new_tokens: int | None = None, start: Tensor | None = None, **options) -> Tensor:
        """Reports (B, T) in token ids, from [CLS] to [SEP], padded after it.

        new_tokens: at most so many; None as many as fit. start (B, S): the first tokens, all real, if not only [CLS].
        options: of transformers' `generate` (num_beams, do_sample, top_p, temperature, repetition_penalty, use_cache).
        """
        start = first_token(image) if start is None else start
        room = self.length - start.shape[1]
        if new_tokens is not None and not 1 <= new_tokens <= room:
            raise KitError(f"new_tokens={new_tokens}: this decoder writes 1 to {room} tokens after these {start.shape[1]}")
        options = {"do_sample": False, "max_new_tokens": new_tokens or room} | options
        was_training = self.body.training
        self.body.eval()
        try:
            return self.body.generate(
                start, attention_mask=torch.ones_like(start), encoder_hidden_states=self.context(image), **options
            )
        finally:
            self.body.train(was_training)


class Captioning(Objective):
    """`next_token_loss` of the principal text, given the image; the text encoder takes no part.

    model: the model it is for; sizes are read from it, nothing of it is kept. width, layers, heads, dropout: of the
    decoder. After training `generate(model.encode_image(images))` writes.
    """

    name = "captioning"

    def __init__(
        self, model: VisionLanguageModel, *, width: int | None = None, layers: int = 2, heads: int = 4, dropout: float = 0.0
    ):  # fmt: skip
        super().__init__()
        text = model.text_encoder
        self.decoder = CaptionDecoder(
            image_width=model.image_encoder.width, vocabulary_size=text.vocabulary_size, width=width or text.width,
            layers=layers, heads=heads, length=text.length, dropout=dropout,
        )  # fmt: skip

    def generate(self, image: ImageFeatures, **options) -> Tensor:
        """Token ids (B, T) of the reports it writes; see `CaptionDecoder.generate`."""
        return self.decoder.generate(image, **options)

    def forward(self, forward_pass: ForwardPass) -> ObjectiveOutput:
        tokens = forward_pass.batch.tokens
        logits = self.decoder(forward_pass.image, tokens.ids, tokens.mask)
        return next_token_output(logits, tokens.ids, tokens.mask)


class PrefixLanguage(Objective):
    """Prefix language model: one transformer over image and text, the image seen by all, each word only by later ones.

    It takes MedViLL's sequence-to-sequence mask in single-stream fusion. A bidirectional text encoder in front would
    tell every word what comes next, as would fusion layers that apply another mask first: both are refused.
    """

    name = "prefix language"

    def __init__(self, model: VisionLanguageModel):
        super().__init__()
        if not isinstance(model.fusion, SingleStream) or model.fusion.meet_at:
            raise KitError("a prefix language model needs fusion 'single_stream' with meet_at=0: other masks show later words")
        needs_causal_text(model, "a prefix language model")
        self.head = TokenHead(model.fusion.width, model.text_encoder.vocabulary_size)

    def logits(self, model: VisionLanguageModel, image: ImageFeatures, ids: Tensor, mask: Tensor) -> Tensor:
        """Scores (B, T, V) of the token after each."""
        fused = model.fusion(image, model.text_encoder(ids, mask), mask_style="sequence_to_sequence")
        return self.head(fused.tokens)

    def generate(self, model: VisionLanguageModel, image: ImageFeatures, **options) -> Tensor:
        """Token ids (B, T) of the reports it writes; options of transformers' `generate`. Reads all words anew each step."""
        return generate_by(lambda image, ids, mask: self.logits(model, image, ids, mask), model, image, **options)

    def forward(self, forward_pass: ForwardPass) -> ObjectiveOutput:
        tokens = forward_pass.batch.tokens
        fused = forward_pass.model.fusion(forward_pass.image, forward_pass.text, mask_style="sequence_to_sequence")
        return next_token_output(self.head(fused.tokens), tokens.ids, tokens.mask)


def next_token_output(logits: Tensor, ids: Tensor, mask: Tensor) -> ObjectiveOutput:
    """`next_token_loss` with its log."""
    loss = next_token_loss(logits, ids, mask)
    with torch.no_grad():
        return ObjectiveOutput(loss, {"next word found": next_token_accuracy(logits, ids, mask)})


def needs_causal_text(model: VisionLanguageModel, name: str) -> None:
    """One line of error where the text encoder would show each word the words after it."""
    if not model.text_encoder.causal:
        raise KitError(f"{name} needs a causal text encoder: take text_encoder='gpt2' with pooling 'eos'")


def first_token(image: ImageFeatures) -> Tensor:
    """[CLS] for each image, (B, 1) int64."""
    return torch.full((len(image.pooled), 1), CLS, dtype=torch.int64, device=image.pooled.device)


@torch.no_grad()
def generate_by(
    logits: Callable[[ImageFeatures, Tensor, Tensor], Tensor], model: VisionLanguageModel, image: ImageFeatures, *,
    new_tokens: int | None = None, **options,
) -> Tensor:  # fmt: skip
    """transformers' `generate` for any function (image, ids (B, T), mask) -> logits (B, T, V); no cache."""
    from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutput

    class Writer(PreTrainedModel, GenerationMixin):
        """What `generate` asks of a model, around a function."""

        config_class = PretrainedConfig
        device, dtype = image.pooled.device, image.pooled.dtype  # it has no weights of its own to tell

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_) -> CausalLMOutput:
            times = len(input_ids) // len(image.pooled)  # beams of one image stand side by side
            seen = ImageFeatures(
                image.pooled.repeat_interleave(times, 0), image.patches.repeat_interleave(times, 0), image.grid, image.places
            )
            return CausalLMOutput(logits=logits(seen, input_ids, torch.ones_like(input_ids, dtype=torch.bool)))

    room = model.text_encoder.length - 1
    if new_tokens is not None and not 1 <= new_tokens <= room:
        raise KitError(f"new_tokens={new_tokens}: this model writes 1 to {room} tokens")
    config = PretrainedConfig(
        vocab_size=model.text_encoder.vocabulary_size, bos_token_id=CLS, eos_token_id=SEP, pad_token_id=PAD
    )
    start = first_token(image)
    options = {"do_sample": False, "max_new_tokens": new_tokens or room} | options | {"use_cache": False}
    was_training = model.training
    model.eval()
    try:
        return Writer(config).generate(start, attention_mask=torch.ones_like(start), **options)
    finally:
        model.train(was_training)
