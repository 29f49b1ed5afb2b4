"""A slow copy of the model, the momentum teacher, and the queue of what it has lately seen.

    teacher <- momentum * teacher + (1 - momentum) * student        before every training step

Its embeddings change little from step to step, so those of earlier batches still serve as negatives (MoCo; He et al.,
CVPR 2020). And what it thinks of a wrong pair can soften the claim that only the own text is right (momentum
distillation; ALBEF, Li et al., "Align before fuse", NeurIPS 2021).
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed import gather
from ..errors import KitError
from ..study import Tokens
from . import Objective, ObjectiveOutput

if TYPE_CHECKING:
    from ..model import ForwardPass, VisionLanguageModel


class MomentumTeacher(nn.Module):
    """A moving average of `model`, without gradient and kept in checkpoints.

    Embeddings of a forward pass are computed once, however many objectives share the teacher, and in training it moves
    once before that. As in MoCo and ALBEF it is in training mode while the student is: dropout is on, and batch norm
    uses the batch and keeps statistics of its own.
    """

    def __init__(self, model: VisionLanguageModel, *, momentum: float = 0.995):
        super().__init__()
        if not 0 <= momentum <= 1:
            raise KitError(f"momentum is {momentum}: choose it between 0 and 1")
        self.model, self.momentum = deepcopy(model).requires_grad_(False), momentum

    @torch.no_grad()
    def follow(self, model: VisionLanguageModel) -> None:
        """Move a little towards `model`."""
        ours, theirs = (list(one.parameters()) for one in (self.model, model))
        torch._foreach_lerp_(ours, [parameter.detach() for parameter in theirs], 1 - self.momentum)

    def forward(self, forward_pass: ForwardPass) -> tuple[Tensor, Tensor]:
        """Unit vectors of images and texts, both (B, D), of this process."""
        return forward_pass.cached(("momentum", id(self)), lambda: self._embed(forward_pass))

    @torch.no_grad()
    def _embed(self, forward_pass: ForwardPass) -> tuple[Tensor, Tensor]:
        if self.training:
            self.follow(forward_pass.model)
        images, tokens = forward_pass.batch.images, forward_pass.batch.tokens
        size = getattr(forward_pass, "chunk", len(images))  # what the student cannot hold at once, its copy cannot either
        seen = [self.model.embed_image(self.model.encode_image(part)) for part in images.split(size)]
        parts = zip(tokens.ids.split(size), tokens.mask.split(size))
        read = [self.model.embed_text(self.model.encode_text(Tokens(ids, mask))) for ids, mask in parts]
        return torch.cat(seen), torch.cat(read)


class MomentumQueue(nn.Module):
    """The last `size` pairs of embeddings, oldest overwritten first. Empty places are marked, not filled with noise."""

    def __init__(self, width: int, size: int):
        super().__init__()
        if size < 1:
            raise KitError(f"the queue has {size} places: give it at least one")
        self.register_buffer("image", torch.zeros(size, width))
        self.register_buffer("text", torch.zeros(size, width))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))  # pairs ever put in

    def filled(self) -> Tensor:
        """(K,) bool: the places that hold a pair."""
        return torch.arange(len(self.image), device=self.count.device) < self.count

    @torch.no_grad()
    def put(self, image: Tensor, text: Tensor) -> None:
        """image, text (B, D); of a batch larger than the queue the last pairs stay."""
        size = len(self.image)
        places = (self.count + torch.arange(len(image), device=self.count.device))[-size:] % size  # all different
        self.image[places], self.text[places] = image[-size:].to(self.image.dtype), text[-size:].to(self.text.dtype)
        self.count += len(image)


def momentum_contrast(
    image: Tensor,
    text: Tensor,
    image_keys: Tensor,
    text_keys: Tensor,
    *,
    temperature: Tensor | float,
    alpha: Tensor | float = 0.0,
    allowed: Tensor | None = None,
) -> Tensor:
    """Find the own text among M keys, and the own image, mean of both directions; for image to text

        p_i = softmax_j(<image_i, text_keys_j> / temperature),     q_i = softmax_j(<image_keys_i, text_keys_j> / temperature)
        loss = -mean_i sum_j y_ij log p_ij,                        y = alpha q + (1 - alpha) I

    image, text: (B, D) unit vectors of the student. image_keys, text_keys: (M, D) of the teacher, no gradient: the same
    B pairs first, then the queue. alpha: how much the teacher's opinion counts (ALBEF: 0.4). allowed: (M,) bool, False
    for keys that are not there. Near ln M, M counting what is allowed, before training. Scalar.
    """
    count = len(image)
    if image.shape != text.shape or image_keys.shape != text_keys.shape or image.ndim != 2 or len(image_keys) < count:
        shapes = f"image {tuple(image.shape)}, text {tuple(text.shape)}, keys {tuple(image_keys.shape)}, {tuple(text_keys.shape)}"
        raise KitError(f"{shapes}: give (B, D) twice and (M, D) twice, M not below B")
    image_keys, text_keys = image_keys.detach(), text_keys.detach()
    own = torch.arange(count, device=image.device)
    loss = 0.0
    for asks, teacher, keys in ((image, image_keys[:count], text_keys), (text, text_keys[:count], image_keys)):
        scores, opinion = asks @ keys.T / temperature, (teacher @ keys.T / temperature).detach()  # (B, M)
        if allowed is not None:
            lowest = torch.finfo(scores.dtype).min
            scores, opinion = scores.masked_fill(~allowed, lowest), opinion.masked_fill(~allowed, lowest)
        hard, soft = F.cross_entropy(scores, own), F.cross_entropy(scores, opinion.softmax(dim=1))
        loss = loss + (alpha * soft + (1 - alpha) * hard) / 2
    return loss


class MomentumContrast(Objective):
    """`momentum_contrast` of the global batch against teacher and queue, at the model's temperature.

    model: the model it is for; it is copied. queue: pairs kept (MoCo and ALBEF: 65,536 for data sets of millions; 0 for
    none). alpha: rises from 0 in a straight line over `ramp_steps` steps (ALBEF: the first epoch). Teacher, queue and
    step lie in the checkpoint. A true match that sits in the queue counts as a negative, like any in a larger batch.
    """

    name = "momentum contrast"

    def __init__(
        self, model: VisionLanguageModel, *, queue: int = 1024, momentum: float = 0.995, alpha: float = 0.4, ramp_steps: int = 0
    ):
        super().__init__()
        if not 0 <= alpha <= 1 or ramp_steps < 0:
            raise KitError(f"alpha={alpha}, ramp_steps={ramp_steps}: choose alpha in [0, 1] and steps not below 0")
        self.teacher = MomentumTeacher(model, momentum=momentum)
        self.queue = MomentumQueue(model.embedding_width, queue) if queue else None
        self.alpha, self.ramp_steps = alpha, ramp_steps
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, forward_pass: ForwardPass) -> ObjectiveOutput:
        image, text = gather(forward_pass.image_embedding), gather(forward_pass.text_embedding)  # (B, D)
        fresh_image, fresh_text = (gather(x).float() for x in self.teacher(forward_pass))  # (B, D)
        temperature = forward_pass.model.temperature()
        alpha = self.alpha * (self.step / max(1, self.ramp_steps)).clamp(max=1) if self.ramp_steps else self.alpha
        image_keys, text_keys, allowed = fresh_image, fresh_text, None
        if self.queue is not None:
            image_keys = torch.cat([fresh_image, self.queue.image])  # (B + K, D)
            text_keys = torch.cat([fresh_text, self.queue.text])
            there = self.queue.filled()
            allowed = torch.cat([there.new_ones(len(fresh_image)), there])  # (B + K,)
        with torch.autocast(image.device.type, enabled=False):
            image, text = image.float(), text.float()
            loss = momentum_contrast(
                image, text, image_keys, text_keys, temperature=temperature, alpha=alpha, allowed=allowed
            )
        with torch.no_grad():
            hits = (image @ fresh_text.T).argmax(dim=1) == torch.arange(len(image), device=image.device)  # (B,)
            logs = {"batch accuracy": hits.float().mean(), "temperature": temperature.detach(),
                    "alpha": torch.as_tensor(alpha, device=image.device)}  # fmt: skip
            if self.queue is not None:
                logs["queue"] = self.queue.filled().sum()
        if self.training:
            self.step += 1
            if self.queue is not None:
                self.queue.put(fresh_image, fresh_text)
        return ObjectiveOutput(loss, logs)
