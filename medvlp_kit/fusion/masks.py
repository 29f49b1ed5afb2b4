"""Who may look at whom in a single-stream transformer: the five attention masks of MedViLL, as pure functions.

The sequence is [CLS] image tokens [SEP] text tokens. [CLS] and [SEP] belong to the image block, as in MedViLL, so a
block of N image tokens is N + 2 long. Every function takes the length of the image block and the text mask (B, T),
True on real tokens, and returns a bool matrix (B, 1, L, L) with L = image block + T, True where the row (the token
that looks) may see the column (the token that is seen). Two rules hold for all of them: a padded text token is seen
by nobody else, and every token sees itself, so no row is empty and no softmax divides by zero.

Source: Moon et al., "Multi-modal understanding and generation for medical images and text via vision-language
pre-training", IEEE JBHI 2022. In the pictures below `i` are the tokens of the image block, `t` those of the text,
x marks what is seen; rows look, columns are seen.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import unknown

SEQUENCE_TO_SEQUENCE_PROBABILITY = 0.75  # MedViLL's mixture: three steps in four generate, one understands


def bidirectional(image_length: int, text_mask: Tensor) -> Tensor:
    """Everybody sees everybody: the mask of BERT, for understanding.

       i i t t t
    i  x x x x x
    i  x x x x x
    t  x x x x x
    t  x x x x x
    t  x x x x x
    """
    length = image_length + text_mask.shape[1]
    return _respect_padding(_ones(length, text_mask), text_mask)


def sequence_to_sequence(image_length: int, text_mask: Tensor) -> Tensor:
    """The image sees the image; a word sees the image and the words before it: a mask for generation.

       i i t t t
    i  x x . . .
    i  x x . . .
    t  x x x . .
    t  x x x x .
    t  x x x x x

    [CLS] is in the image block, so under this mask it knows nothing of the text: pool the text instead.
    """
    length = image_length + text_mask.shape[1]
    allowed = _ones(length, text_mask).tril()  # words: the image, the past, themselves
    allowed[:image_length, :image_length] = True
    return _respect_padding(allowed, text_mask)


def bidirectional_autoregressive(image_length: int, text_mask: Tensor) -> Tensor:
    """BAR: the image sees everything; a word sees the image and the words before it. The mask MedViLL recommends.

       i i t t t
    i  x x x x x
    i  x x x x x
    t  x x x . .
    t  x x x x .
    t  x x x x x

    In one layer no word sees a later word. From the second layer on it does, by way of the image tokens, which have
    read the whole text: this mask alone does not make a language model that can be trained on next words.
    """
    allowed = sequence_to_sequence(image_length, text_mask)
    allowed[:, :, :image_length, :image_length] = True
    allowed[:, :, :image_length, image_length:] = text_mask[:, None, None, :]
    return allowed


def non_crossing(image_length: int, text_mask: Tensor) -> Tensor:
    """Image sees image, text sees text: one transformer, two conversations. The control that shows what fusion adds.

       i i t t t
    i  x x . . .
    i  x x . . .
    t  . . x x x
    t  . . x x x
    t  . . x x x
    """
    length = image_length + text_mask.shape[1]
    is_text = torch.arange(length, device=text_mask.device) >= image_length  # (L,)
    return _respect_padding(is_text[:, None] == is_text[None, :], text_mask)


def mixed(
    image_length: int,
    text_mask: Tensor,
    *,
    generator: torch.Generator | None = None,
    probability: float = SEQUENCE_TO_SEQUENCE_PROBABILITY,
) -> Tensor:
    """`sequence_to_sequence` with the given probability, else `bidirectional`; one draw for the whole batch.

    None draws from torch's global generator, as dropout does, so that a seeded run stays reproducible.
    """
    device = "cpu" if generator is None else generator.device  # one number: drawing it on the CPU costs no wait
    chosen = torch.rand((), generator=generator, device=device)
    return (sequence_to_sequence if float(chosen) < probability else bidirectional)(image_length, text_mask)


MASKS: dict[str, Callable[..., Tensor]] = {
    "bidirectional": bidirectional,
    "sequence_to_sequence": sequence_to_sequence,
    "bidirectional_autoregressive": bidirectional_autoregressive,
    "mixed": mixed,
    "non_crossing": non_crossing,
}


def check_mask_style(style: str) -> str:
    """The style itself; a name that is not one of the five is a `KitError`."""
    if style not in MASKS:
        raise unknown("mask style", style, MASKS)
    return style


def keys_only(mask: Tensor) -> Tensor:
    """(B, T) mask of real tokens -> (B, 1, 1, T): every query sees every real token, and no other.

    A text without one real token would leave nothing to look at; then its first position is seen.
    """
    empty = ~mask.any(dim=1, keepdim=True)  # (B, 1)
    first = torch.arange(mask.shape[1], device=mask.device) == 0  # (T,)
    return (mask | (empty & first))[:, None, None, :]


def _ones(length: int, text_mask: Tensor) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool, device=text_mask.device)


def _respect_padding(allowed: Tensor, text_mask: Tensor) -> Tensor:
    """(L, L) for one sequence and (B, T) text mask -> (B, 1, L, L): padding is unseen, except by itself."""
    length = allowed.shape[0]
    image = text_mask.new_ones(text_mask.shape[0], length - text_mask.shape[1])
    real = torch.cat([image, text_mask], dim=1)[:, None, None, :]  # (B, 1, 1, L)
    itself = torch.eye(length, dtype=torch.bool, device=text_mask.device)
    return (allowed & real) | itself
