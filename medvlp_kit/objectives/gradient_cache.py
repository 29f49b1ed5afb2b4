"""Large batches in little memory: the batch is encoded in chunks, and each chunk once more when its gradient is known
(GradCache; Gao et al., "Scaling deep contrastive learning batch size under memory limited setup", RepL4NLP 2021).

A contrastive loss needs all B embeddings, but d loss / d weights = sum_i (d loss / d v_i)(d v_i / d weights): once the
first factor is known, the second can be had a few rows at a time. So the chunks are encoded and their activations
forgotten, the loss gives the gradient at the (B, D) embeddings, and each chunk is encoded again with the random numbers
of its first time and followed back. The price is one more forward pass; the memory that of one chunk.

Everything in evaluation is as without chunks. In training, batch norm takes its statistics from each chunk, as it does
from each process when several train; with layer norm the gradients are those of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.checkpoint import checkpoint

from ..encoders.features import ImageFeatures, TextFeatures
from ..errors import KitError
from ..fusion.features import FusedFeatures
from ..model import ForwardPass, VisionLanguageModel
from ..study import Batch, Tokens
from . import Objective, ObjectiveOutput


class ChunkedForwardPass(ForwardPass):
    """A forward pass that offers the two embeddings, made `chunk` studies at a time, and nothing else."""

    def __init__(self, model: VisionLanguageModel, batch: Batch, *, chunk: int):
        super().__init__(model, batch)
        if chunk < 1:
            raise KitError(f"chunk is {chunk}: take at least one study at a time")
        self.chunk, self._again = chunk, False

    @property
    def image_embedding(self) -> Tensor:
        """Unit vectors (B, D)."""
        embed = lambda images: self.model.embed_image(self.model.encode_image(images))  # noqa: E731
        return self.cached("image embedding", lambda: self._in_chunks(embed, self.batch.images))

    @property
    def text_embedding(self) -> Tensor:
        """Unit vectors (B, D)."""
        tokens = self.batch.tokens
        embed = lambda ids, mask: self.model.embed_text(self.model.encode_text(Tokens(ids, mask)))  # noqa: E731
        return self.cached("text embedding", lambda: self._in_chunks(embed, tokens.ids, tokens.mask))

    def view(self, name: str) -> ImageFeatures:
        raise KitError(_refusal("features of an image"))

    def reading(self, name: str) -> TextFeatures:
        raise KitError(_refusal("features of a text"))

    @property
    def fused(self) -> FusedFeatures:
        raise KitError(_refusal("fused features"))

    def compute(self, objective: Objective) -> ObjectiveOutput:
        """`objective` on the embeddings. The encoders are closed to it: what it encoded itself would be kept whole."""
        _ = self.image_embedding, self.text_embedding
        parts = (self.model.image_encoder, self.model.text_encoder, self.model.fusion)
        closed = {module for part in parts if part is not None for module in part.modules()}

        def refuse(module: nn.Module, inputs: tuple) -> None:
            if module in closed and not self._again:
                raise KitError(_refusal("the encoders themselves"))

        hook = register_module_forward_pre_hook(refuse)
        try:
            return objective(self)
        finally:
            hook.remove()

    def _in_chunks(self, embed: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        # tensors go in as arguments: the random state of their device is then restored too
        contexts = lambda: (nullcontext(), _SecondTime(self))  # noqa: E731
        pieces = [
            checkpoint(embed, *part, use_reentrant=False, context_fn=contexts)
            for part in zip(*(tensor.split(self.chunk) for tensor in inputs))
        ]
        return torch.cat(pieces)


class _SecondTime:
    """Around the second encoding of a chunk; entered anew each time the graph is followed back."""

    def __init__(self, forward_pass: ChunkedForwardPass):
        self.forward_pass = forward_pass

    def __enter__(self) -> None:
        self.still = still_statistics(self.forward_pass.model)
        self.still.__enter__()
        self.forward_pass._again = True

    def __exit__(self, *error) -> None:
        self.forward_pass._again = False
        self.still.__exit__(*error)


@contextmanager
def still_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norm in training normalises as ever, but its running statistics stay as they are."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before):
            norm.momentum, norm.num_batches_tracked = momentum, count


def chunked_output(objective: Objective, model: VisionLanguageModel, batch: Batch, *, chunk: int) -> ObjectiveOutput:
    """What `objective(ForwardPass(model, batch))` gives, in the memory of `chunk` studies; for objectives that read
    nothing but `image_embedding` and `text_embedding`. Follow its loss back once; the second encoding happens there."""
    return ChunkedForwardPass(model, batch, chunk=chunk).compute(objective)


def _refusal(what: str) -> str:
    return f"this objective reads {what}, but with a chunk only the two embeddings of each study can be had: leave out the chunk"
