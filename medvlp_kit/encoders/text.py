"""Text encoders: transformers' BERT and GPT-2 from a config, any local or cached model, or the BERT written out.

All take token ids and a mask and return `TextFeatures`. Tokens that are only padding never reach a result: the mask
goes into attention and into pooling, and features at padded places are zero.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import KitError, unknown
from .features import TextFeatures
from .pooling import POOLINGS, pool_text


class TextEncoder(nn.Module):
    """What every text encoder shares: checks, pooling, freezing.

    forward(ids (B, T) int64, mask (B, T) bool) -> TextFeatures of width `width`. `length` is the most tokens it can
    read, `layers` its number of layers. Subclasses give `encode` and `parts`.
    """

    def __init__(self, *, width: int, layers: int, length: int, vocabulary_size: int, pooling: str, causal: bool):
        super().__init__()
        if pooling not in POOLINGS:
            raise unknown("pooling", pooling, POOLINGS)
        if causal and pooling == "cls":
            raise KitError("pooling='cls': in a causal model the first token sees no other; use 'eos' or 'mean'")
        self.width, self.layers, self.length, self.vocabulary_size = width, layers, length, vocabulary_size
        self.pooling, self.causal = pooling, causal
        self.frozen: list[nn.Module] = []

    def encode(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """Hidden states (B, T, D): the embeddings, then the output of each layer."""
        raise NotImplementedError

    def parts(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """The modules that embed tokens, and the layers in order: what `freeze` counts."""
        raise NotImplementedError

    def forward(self, ids: Tensor, mask: Tensor) -> TextFeatures:
        self.check(ids, mask)
        states = self.encode(ids, mask)
        # GLoRIA reads the sum of the last four layers (Huang et al. 2021, section 3.2); a shallow model sums all.
        tokens = sum(states[1:][-4:]) if self.pooling == "last4" else states[-1]
        tokens = tokens.masked_fill(~mask[..., None], 0.0)  # (B, T, D)
        how = "mean" if self.pooling == "last4" else self.pooling
        return TextFeatures(pooled=pool_text(tokens, mask, how=how), tokens=tokens, mask=mask)

    def check(self, ids: Tensor, mask: Tensor) -> None:
        """One line when the tokens are not what this encoder was built for."""
        if ids.dim() != 2 or ids.shape != mask.shape or mask.dtype != torch.bool:
            raise KitError(
                f"token ids of shape {tuple(ids.shape)} with a {mask.dtype} mask of shape {tuple(mask.shape)}: "
                "both are (B, T), ids int64 and mask bool, True on real tokens"
            )
        if ids.shape[1] > self.length:
            raise KitError(
                f"a text of {ids.shape[1]} tokens: this encoder reads at most {self.length}; "
                f"encode with length={self.length} or build it with a greater length"
            )

    def train(self, mode: bool = True) -> TextEncoder:
        """As usual, but frozen parts stay in evaluation mode: a frozen part must not drop anything at random."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self


def freeze(encoder: TextEncoder, *, first_layers: int | None = None) -> TextEncoder:
    """Stop the embeddings and the first `first_layers` layers (None: everything) from learning; returns the encoder.

    ConVIRT freezes the embeddings and the first six of ClinicalBERT's twelve layers.
    """
    embeddings, layers = encoder.parts()
    if first_layers is None:
        encoder.frozen = [module for module in encoder.children()]
    elif 0 <= first_layers <= len(layers):
        encoder.frozen = [*embeddings, *layers[:first_layers]]
    else:
        raise KitError(f"freeze={first_layers}: this encoder has {len(layers)} layers; choose 0 to {len(layers)}")
    for part in encoder.frozen:
        part.requires_grad_(False)
    return encoder.train(encoder.training)


class TransformersEncoder(TextEncoder):
    """A transformers model: BERT family (BERT, RoBERTa, DistilBERT, ELECTRA ...) or GPT-2."""

    def __init__(self, body: nn.Module, *, pooling: str):
        config = body.config
        causal = config.model_type in CAUSAL
        length = config.max_position_embeddings
        if config.model_type in ("roberta", "xlm-roberta", "camembert"):
            length -= config.pad_token_id + 1  # their positions start after the padding id
        super().__init__(
            width=config.hidden_size, layers=config.num_hidden_layers, length=length,
            vocabulary_size=config.vocab_size, pooling=pooling, causal=causal,
        )  # fmt: skip
        self.body = body

    def encode(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        options = {}
        if self.causal:
            # Positions count real tokens only, so padding on the left shifts nothing.
            options["position_ids"] = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
            options["use_cache"] = False
        output = self.body(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True, **options)
        return list(output.hidden_states)

    def parts(self) -> tuple[list[nn.Module], list[nn.Module]]:
        for path in ("encoder.layer", "transformer.layer", "h"):
            try:
                layers = list(self.body.get_submodule(path))
            except AttributeError:
                continue
            embeddings = [self.body.wte, self.body.wpe] if path == "h" else [self.body.embeddings]
            return embeddings, layers
        raise KitError(f"the kit does not know the layers of a {type(self.body).__name__}: use freeze=None or 'all'")


CAUSAL = ("gpt2", "openai-gpt", "biogpt", "gpt_neo", "opt", "llama")


def build_text_encoder(
    name: str = "bert", *, vocabulary_size: int | None = None, width: int = 128, layers: int = 2, heads: int = 4,
    length: int = 64, pooling: str = "cls", freeze: str | int | None = None, dropout: float = 0.0,
) -> TextEncoder:  # fmt: skip
    """The text encoder called `name`.

    "bert", "gpt2": transformers models made from these sizes, untrained. "kit_bert": the one written out in `bert.py`.
    Anything else is a folder or a hub name (see `hub.NAMES`) whose weights are already on this machine; it brings its
    own sizes, vocabulary and tokenizer (`hub.load_tokenizer`); width, layers, heads and length are then not used.

    ids (B, T), mask (B, T) bool -> TextFeatures. pooling: "cls", "mean", "max", "eos", or "last4" (GLoRIA).
    freeze: None, "all", or how many of the first layers stay fixed together with the embeddings.
    Raises KitError for an unknown pooling, a name that is not cached, or a vocabulary that does not fit.
    """
    sizes = dict(width=width, layers=layers, heads=heads, length=length, dropout=dropout)
    if name in MADE_HERE:
        if vocabulary_size is None:
            raise KitError(f"text encoder {name!r} needs vocabulary_size=..., the tokenizer's vocabulary_size")
        encoder = MADE_HERE[name](vocabulary_size=vocabulary_size, pooling=pooling, **sizes)
    else:
        from .hub import load_model

        encoder = TransformersEncoder(load_model(name), pooling=pooling)
        if vocabulary_size not in (None, encoder.vocabulary_size):
            raise KitError(
                f"{name!r} was trained with a vocabulary of {encoder.vocabulary_size} tokens, the tokenizer at hand "
                f"has {vocabulary_size}: use its own, encoders.hub.load_tokenizer({name!r})"
            )
    return _frozen(encoder, freeze)


def _frozen(encoder: TextEncoder, how: str | int | None) -> TextEncoder:
    if how is None:
        return encoder
    if how == "all":
        return freeze(encoder)
    if isinstance(how, int) and not isinstance(how, bool):
        return freeze(encoder, first_layers=how)
    raise KitError(f"freeze={how!r}: use None, 'all' or a number of layers")


def _bert(*, vocabulary_size: int, width: int, layers: int, heads: int, length: int, dropout: float, pooling: str):
    from transformers import BertConfig, BertModel

    _check_heads(width, heads)
    config = BertConfig(
        vocab_size=vocabulary_size, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * width, max_position_embeddings=length, hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout, type_vocab_size=1,
    )  # fmt: skip
    return TransformersEncoder(BertModel(config, add_pooling_layer=False), pooling=pooling)


def _gpt2(*, vocabulary_size: int, width: int, layers: int, heads: int, length: int, dropout: float, pooling: str):
    from transformers import GPT2Config, GPT2Model

    _check_heads(width, heads)
    config = GPT2Config(
        vocab_size=vocabulary_size, n_embd=width, n_layer=layers, n_head=heads, n_positions=length,
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return TransformersEncoder(GPT2Model(config), pooling=pooling)


def _kit_bert(**options) -> TextEncoder:
    from .bert import BertEncoder

    return BertEncoder(**options)


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise KitError(f"width {width} cannot be split among {heads} heads: choose a divisor of {width}")


MADE_HERE: dict[str, Callable[..., TextEncoder]] = {"bert": _bert, "gpt2": _gpt2, "kit_bert": _kit_bert}
