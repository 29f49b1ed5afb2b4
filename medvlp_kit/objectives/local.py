"""Words against regions: each word looks for its place in the image (GLoRIA; Huang et al., ICCV 2021, section 3.3).

For image i and text j every word w_t gathers a context c_t from the regions v_n, and the pair is scored by how well the
contexts agree with the words:

    p_nt = softmax_t <v_n, w_t>  (words first, the released code)      or     p_nt = <v_n, w_t>  (the paper)
    a_nt = softmax_n(attention_scale * p_nt),      c_t = sum_n a_nt v_n
    Z_ij = log sum_t exp(word_scale * cos(c_t, w_t))
    loss = cross-entropy of logit_scale * Z: image to text along its rows, text to image along its columns

All contexts of all B * B pairs would fill a (B, B, T, D) tensor, which is never needed: <c, w> = sum_n a_n <v_n, w> and
|c|^2 = a^T G a, where G = V V^T is the Gram matrix of the regions. And as a cosine does not see how long c is, the
weights a need not even be divided by their sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..distributed import gather, world_size
from ..encoders.pooling import aggregate_words
from ..errors import KitError
from . import Objective, ObjectiveOutput
from .pieces import MarkedPieces, continues_word, real_words

if TYPE_CHECKING:
    from ..model import ForwardPass

# Numbers in one (images, B, T, N) piece of work: what a processor's cache holds, and what keeps a GPU busy.
PIECE_CPU, PIECE_GPU = 2**20, 2**26
# Numbers kept from the forward to the backward pass (0.5 GB in float32); a larger batch computes them a second time.
KEPT = 2**27
# |c|^2 is a sum with cancellation: below this many rounding errors it is noise, and counts as no context at all.
NOISE = 64


def word_region_loss(
    patches: Tensor,
    words: Tensor,
    mask: Tensor,
    *,
    attention_scale: float = 4.0,
    word_scale: float = 5.0,
    logit_scale: float = 10.0,
    words_first: bool = True,
    chunk: int | None = None,
    keep: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """GLoRIA's local loss over B true pairs. Returns (image_to_text, text_to_image), two scalars.

    patches (B, N, D), words (B, T, D), mask (B, T) bool, True on real words. Lengths matter to the attention: vectors
    are used as they come. words_first: the released code lets the words of a report compete for each region before the
    regions compete for each word; the paper's formula (False) has only the second softmax. The paper also raises the
    sum over words to the power 1 / word_scale, which the released code does not: divide logit_scale by it for that.
    chunk: images worked on at a time; keep: hold intermediate results for the backward pass instead of computing them
    twice. Both are chosen by size when None, and change time and memory only.
    """
    if patches.shape[:1] != words.shape[:1]:
        raise KitError(f"{len(patches)} images and {len(words)} texts: give pairs, row i of one with row i of the other")
    options = dict(attention_scale=attention_scale, word_scale=word_scale, words_first=words_first, chunk=chunk, keep=keep)
    return both_directions(logit_scale * word_region_similarity(patches, words, mask, **options))


def both_directions(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of (B, B) logits whose diagonal is right: along the rows, and along the columns."""
    target = torch.arange(len(logits), device=logits.device)  # (B,)
    return F.cross_entropy(logits, target), F.cross_entropy(logits.T, target)


def word_region_similarity(
    patches: Tensor,
    words: Tensor,
    mask: Tensor,
    *,
    attention_scale: float = 4.0,
    word_scale: float = 5.0,
    words_first: bool = True,
    chunk: int | None = None,
    keep: bool | None = None,
) -> Tensor:
    """Z (B images, B texts) of every image with every text; the two numbers may differ. Half types run in float32.

    A text without any real word has Z = 0 with every image.
    """
    if patches.ndim != 3 or words.ndim != 3 or patches.shape[2] != words.shape[2]:
        raise KitError(f"patches {tuple(patches.shape)}, words {tuple(words.shape)}: give (B, N, D) and (B, T, D)")
    if mask.shape != words.shape[:2] or mask.dtype != torch.bool:
        raise KitError(f"mask is {mask.dtype} {tuple(mask.shape)}: give bool {tuple(words.shape[:2])}, True on words")
    if torch.finfo(patches.dtype).bits < 32 or torch.finfo(words.dtype).bits < 32:
        patches, words = patches.float(), words.float()
    words = words.masked_fill(~mask[..., None], 0.0)  # whatever padding holds, NaN included, ends here
    along = _AlongContext.apply(patches, words, mask, attention_scale, words_first, chunk, keep)  # (B, B, T)
    length = words.norm(dim=-1).clamp(min=torch.finfo(words.dtype).tiny ** 0.5)  # (B, T)
    silent = ~mask.any(dim=1)  # (B,)
    counted = mask | silent[:, None]  # never a logarithm of zero, whose gradient is NaN
    scores = (word_scale * along / length).masked_fill(~counted, -torch.inf)  # (B, B, T)
    return scores.logsumexp(dim=2).masked_fill(silent, 0.0)


def word_region_attention(
    patches: Tensor, words: Tensor, mask: Tensor, *, attention_scale: float = 4.0, words_first: bool = True
) -> Tensor:
    """Where each word of text i looks in image i: (B, T, N), each row a distribution over regions; zero for padding."""
    scores = words.masked_fill(~mask[..., None], 0.0) @ patches.transpose(1, 2)  # (B, T, N)
    if words_first:
        scores = scores.masked_fill(~mask[..., None], torch.finfo(scores.dtype).min).softmax(dim=1)
    return (attention_scale * scores).softmax(dim=2) * mask[..., None]


class _AlongContext(torch.autograd.Function):
    """m_ijt = <c, w> / |c|: how far word t of text j reaches along the context it gathers from image i, (B, B, T).

    Images are taken a few at a time. With e_n = exp(attention_scale * p_n), s_n = <v_n, w> and q = |c|^2 = e^T G e,

        dm/de_n = s_n / |c| - m (G e)_n / q,      dm/ds_n = e_n / |c|,      dm/dG = -m e e^T / (2 q)

    Shapes below: b images of this piece, M = B * T words, N regions.
    """

    @staticmethod
    def forward(context, patches, words, mask, scale, words_first, chunk, keep):
        size = patches.shape[1] * mask.numel()  # of one image
        if chunk is None:
            chunk = (PIECE_CPU if patches.device.type == "cpu" else PIECE_GPU) // max(1, size)
        needed = any(context.needs_input_grad)
        keep = needed and (3 * len(patches) * size <= KEPT if keep is None else keep)
        context.options, context.kept = (scale, words_first, max(1, chunk)), []
        pieces = []
        for part in patches.split(max(1, chunk)):
            along, *rest = _look(part, words, mask, scale, words_first, slopes=keep)
            pieces.append(along)
            if keep:
                context.kept.append((along, *rest))
        context.save_for_backward(patches, words, mask)
        return torch.cat(pieces).view(-1, *mask.shape)

    @staticmethod
    @once_differentiable
    def backward(context, gradient):
        patches, words, mask = context.saved_tensors
        scale, words_first, chunk = context.options
        flat = words.flatten(0, 1)  # (M, D)
        to_patches, to_words = torch.empty_like(patches), torch.zeros_like(flat)
        for number, part in enumerate(patches.split(chunk)):
            rows = slice(number * chunk, number * chunk + len(part))
            found = context.kept[number] if context.kept else _look(part, words, mask, scale, words_first, slopes=True)
            along, inverse, weights, slopes, chances = found
            wanted = gradient[rows].reshape(along.shape)  # (b, M, 1)
            to_scores = slopes * (scale * wanted)  # (b, M, N)
            if words_first:  # through the softmax over the words of each text
                by_text = to_scores.view_as(chances)  # (b, B, T, N)
                by_text = chances * (by_text - (chances * by_text).sum(dim=2, keepdim=True))
                to_scores = by_text.view_as(weights)
            to_scores.addcmul_(weights, wanted * inverse)
            to_gram = (weights * (wanted * along * inverse.square())).transpose(1, 2) @ weights  # (b, N, N), times -2
            texts = flat.expand(len(part), -1, -1)
            to_patches[rows] = torch.baddbmm(to_gram @ part, to_scores.transpose(1, 2), texts, beta=-1)
            to_words.addmm_(to_scores.transpose(0, 1).reshape(len(flat), -1), part.flatten(0, 1))
        return to_patches, to_words.view_as(words), None, None, None, None, None


def _look(part: Tensor, words: Tensor, mask: Tensor, scale: float, words_first: bool, *, slopes: bool):
    """m (b, M, 1); with `slopes` also 1 / |c| (b, M, 1), e (b, M, N), e * dm/de (b, M, N) and p (b, B, T, N)."""
    texts = words.flatten(0, 1).expand(len(part), -1, -1)
    scores = torch.bmm(texts, part.transpose(1, 2))  # (b, M, N)
    chances = None
    if words_first:
        by_text = scores.view(len(part), *mask.shape, -1)  # (b, B, T, N)
        chances = by_text.masked_fill(~mask[..., None], torch.finfo(scores.dtype).min).softmax(dim=2)
        weights = (scale * chances).exp_().view_as(scores)  # p is at most 1: nothing can overflow
    else:
        weights = scale * scores
        weights = weights.sub_(weights.amax(dim=2, keepdim=True)).exp_()
    spread = weights @ (part @ part.transpose(1, 2))  # G e (b, M, N)
    square = (spread * weights).sum(dim=2, keepdim=True)  # (b, M, 1)
    most = weights @ part.norm(dim=2)[..., None]  # |c| if no two regions cancelled
    real = square > NOISE * torch.finfo(square.dtype).eps * most.square()
    inverse = square.where(real, 1.0).rsqrt() * real  # zero: no context, no agreement, no gradient
    along = (scores * weights).sum(dim=2, keepdim=True) * inverse
    if not slopes:
        return (along,)
    slope = scores.mul_(inverse).sub_(spread.mul_(along * inverse.square())).mul_(weights)
    return along, inverse, weights, slope, chances


class WordRegion(Objective):
    """`word_region_loss` of the global batch, half of each direction, on the model's projected patches and tokens.

    The model needs `local_projection`. normalise: unit vectors, for which attention scales of 4 hardly leave uniform
    attention; the released code uses them as they come. The first and the last token of a text ([CLS], [SEP]) are not
    words. vocabulary_size: of the text encoder; then the pieces of a word are summed into one vector, as the released
    code does, once `read_tokenizer` has shown which they are. Without it every piece is a word of its own.
    """

    name = "word-region"

    def __init__(
        self,
        *,
        attention_scale: float = 4.0,
        word_scale: float = 5.0,
        logit_scale: float = 10.0,
        words_first: bool = True,
        normalise: bool = False,
        vocabulary_size: int | None = None,
    ):
        super().__init__()
        self.options = dict(attention_scale=attention_scale, word_scale=word_scale, words_first=words_first)
        self.logit_scale, self.normalise = logit_scale, normalise
        self.continues = None if vocabulary_size is None else MarkedPieces(vocabulary_size, continues_word)

    def read_tokenizer(self, tokenizer) -> None:
        if self.continues is not None:
            self.continues.read(tokenizer)

    def forward(self, forward_pass: ForwardPass) -> ObjectiveOutput:
        model, text = forward_pass.model, forward_pass.text
        if model.patch_projection is None:
            raise KitError("word-region alignment needs heads for patches and tokens: build with local_projection=True")
        patches, words = model.project_patches(forward_pass.image), model.token_projection(text.tokens)  # (B, N or T, D)
        mask = real_words(text.mask)  # (B, T)
        with torch.autocast(patches.device.type, enabled=False):
            patches, words = patches.float(), words.float()
            if self.continues is not None:
                numbers = (mask & ~self.continues(forward_pass.batch.tokens.ids)).long().cumsum(dim=1) - 1
                words, mask = aggregate_words(words, numbers, mask, how="sum")
            if self.normalise:
                patches, words = F.normalize(patches, dim=-1), F.normalize(words, dim=-1)
            words, mask = gather_texts(words, mask)  # each process scores its own images against all texts
            similarity = gather(word_region_similarity(patches, words, mask, **self.options))  # (B, B)
            image_to_text, text_to_image = both_directions(self.logit_scale * similarity)
        with torch.no_grad():
            hits = similarity.argmax(dim=1) == torch.arange(len(similarity), device=similarity.device)
        logs = {"image to text": image_to_text.detach(), "text to image": text_to_image.detach()}
        return ObjectiveOutput((image_to_text + text_to_image) / 2, logs | {"batch accuracy": hits.float().mean()})


def gather_texts(words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Words (B, T, D) and mask (B, T) of all processes, padded to the longest text among them."""
    if world_size() == 1:
        return words, mask
    longest = torch.tensor(words.shape[1], device=words.device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    room = int(longest) - words.shape[1]
    return gather(F.pad(words, (0, 0, 0, room))), gather(F.pad(mask, (0, room)).to(words.dtype)) > 0
