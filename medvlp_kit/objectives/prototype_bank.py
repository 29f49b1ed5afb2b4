"""A bank of prototypical sentences that the image must foretell (after PRIOR; Cheng et al., "PRIOR: Prototype representation
joint learning from medical images and reports", ICCV 2023).

Radiologists say few things in many words. Each sentence is replaced by its nearest entry p_k of a learned bank, and a
small decoder with Q queries over the patches predicts the entries of its report, in any order:

    bank    = mean_m |sg(s_m) - p_k(m)|,  k(m) = argmax_k cos(s_m, p_k) (+ Gumbel noise while training)
    foretell = min over assignments of queries to sentences of  mean_m |d_q(m) - sg(p_k(m))|

PRIOR's bank has 512 entries and its decoder eight layers and more losses beside; sg stops the gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoders.layers import Block
from ..errors import KitError
from . import Objective, ObjectiveOutput
from .pieces import MarkedPieces, ends_sentence, real_words, sentence_numbers
from .sentence_region import pool_sentences

if TYPE_CHECKING:
    from ..model import ForwardPass, VisionLanguageModel


def nearest_prototypes(sentences: Tensor, prototypes: Tensor, *, noise: float = 0.0) -> Tensor:
    """Index (...,) of the prototype (K, D) with the highest cosine to each sentence (..., D).

    noise: Gumbel noise of this scale is added to the cosines, from torch's global generator, so that entries that are
    never the nearest are tried as well.
    """
    scores = F.normalize(sentences, dim=-1) @ F.normalize(prototypes, dim=-1).T  # (..., K)
    if noise:
        lots = torch.empty_like(scores).exponential_().clamp(min=torch.finfo(scores.dtype).tiny)
        scores = scores - noise * lots.log()
    return scores.argmax(dim=-1)


def matched_distance(predicted: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference between each real element and the prediction it is matched with.

    predicted (B, Q, D), wanted (B, M, D), mask (B, M) bool with at most Q real elements a study. The matching is the
    cheapest one in which no prediction serves twice (Hungarian algorithm, scipy). Mean over all real elements of the
    batch; zero if there is none. Gradients reach the matched predictions alone.
    """
    from scipy.optimize import linear_sum_assignment

    if predicted.shape[2] != wanted.shape[2] or mask.shape != wanted.shape[:2]:
        raise KitError(f"predicted {tuple(predicted.shape)}, wanted {tuple(wanted.shape)}, mask {tuple(mask.shape)} do not fit")
    most = int(mask.sum(dim=1).max())
    if most > predicted.shape[1]:
        raise KitError(f"a study has {most} elements and there are {predicted.shape[1]} predictions: use more queries")
    distance = (predicted[:, :, None] - wanted[:, None]).abs().mean(dim=3)  # (B, Q, M)
    costs = distance.detach().float().cpu()
    total = distance.new_zeros(())
    for study, real in enumerate(mask):
        columns = real.nonzero().flatten()
        rows, order = linear_sum_assignment(costs[study][:, columns.cpu()].numpy())
        chosen = torch.as_tensor(rows, device=distance.device), columns[torch.as_tensor(order, device=columns.device)]
        total = total + distance[study][chosen].sum()
    return total / mask.sum().clamp(min=1)


class PrototypeBank(Objective):
    """Both terms of the formula; the image's part is `foretell`, the bank's is weighed by `bank_weight`.

    model: the model it is for; sizes are read from it, nothing of it is kept. It needs `local_projection`. count: entries
    of the bank. queries: of the decoder, at least `most`, the sentences of a report that are told apart.
    """

    name = "prototype bank"

    def __init__(
        self, model: VisionLanguageModel, *, count: int = 64, queries: int = 16, most: int = 12, layers: int = 1,
        heads: int = 4, noise: float = 0.1, bank_weight: float = 10.0,
    ):  # fmt: skip
        super().__init__()
        if queries < most:
            raise KitError(f"{queries} queries cannot foretell {most} sentences: choose queries of at least {most}")
        if model.patch_projection is None:
            raise KitError("the prototype bank needs heads for patches and tokens: build with local_projection=True")
        width = model.embedding_width
        self.most, self.noise, self.bank_weight = most, noise, bank_weight
        self.ends = MarkedPieces(model.text_encoder.vocabulary_size, ends_sentence)
        self.prototypes = nn.Parameter(F.normalize(torch.randn(count, width), dim=1))
        self.queries = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, cross=True) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.predict = nn.Linear(width, width)

    def read_tokenizer(self, tokenizer) -> None:
        self.ends.read(tokenizer)

    def forward(self, forward_pass: ForwardPass) -> ObjectiveOutput:
        model, text = forward_pass.model, forward_pass.text
        words = real_words(text.mask)  # (B, T)
        numbers = sentence_numbers(self.ends(forward_pass.batch.tokens.ids), words)
        patches = model.project_patches(forward_pass.image)  # (B, N, D)
        queries = self.queries.expand(len(patches), -1, -1)  # (B, Q, D)
        for block in self.blocks:
            queries = block(queries, context=patches)
        predicted = self.predict(self.norm(queries))
        with torch.autocast(predicted.device.type, enabled=False):
            tokens = model.token_projection(text.tokens).detach().float()  # (B, T, D)
            sentences, mask = pool_sentences(tokens, numbers, words, most=self.most)  # (B, M, D), (B, M)
            sentences = F.normalize(sentences, dim=2)
            index = nearest_prototypes(sentences, self.prototypes, noise=self.noise if self.training else 0.0)  # (B, M)
            chosen = F.normalize(self.prototypes[index], dim=2)  # (B, M, D)
            bank = ((sentences - chosen).abs().mean(dim=2) * mask).sum() / mask.sum().clamp(min=1)
            foretell = matched_distance(predicted.float(), chosen.detach(), mask)
        used = torch.bincount(index[mask], minlength=len(self.prototypes)) > 0
        logs = {"bank": bank.detach(), "foretell": foretell.detach(), "prototypes used": used.float().mean()}
        return ObjectiveOutput(foretell + self.bank_weight * bank, logs)
