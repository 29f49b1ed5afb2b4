"""What each objective of a hybrid asks of the parameters they share: the norm of its gradient, and pairwise cosines.

A cosine near -1 means that two objectives undo each other; a norm ten times another's means that one is hardly heard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..distributed import world_size
from ..errors import KitError

if TYPE_CHECKING:
    from ..model import ForwardPass


def gradient_geometry(losses: Sequence[Tensor], shared: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Norms (K,) and cosines (K, K) of the gradients of K scalar losses at `shared`, all taken as one vector.

    The graph stays for the real backward pass. A loss that does not reach `shared` has norm and cosines zero. With
    several processes the gradients are averaged first, as data parallelism does.
    """
    rows = []
    for loss in losses:
        found = [None] * len(shared)
        if loss.requires_grad:
            found = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(x) if g is None else g for x, g in zip(shared, found)]
        rows.append(torch.cat([part.detach().flatten().float() for part in parts]))
    gradients = torch.stack(rows)  # (K, P)
    if world_size() > 1:
        dist.all_reduce(gradients)
        gradients /= world_size()
    norms = gradients.norm(dim=1)
    unit = gradients / norms.clamp(min=torch.finfo(norms.dtype).tiny)[:, None]
    return norms, unit @ unit.T


def last_matrices(forward_pass: ForwardPass) -> list[Tensor]:
    """The last trainable weight matrix or kernel of each encoder: near enough to the losses to be cheap to reach."""
    found = []
    for encoder in (forward_pass.model.image_encoder, forward_pass.model.text_encoder):
        matrices = [
            parameter
            for name, parameter in encoder.named_parameters()
            if parameter.requires_grad and parameter.ndim >= 2 and name.endswith("weight") and not name.startswith("pool.")
        ]
        found += matrices[-1:]
    if not found:
        raise KitError("both encoders are frozen, so objectives share no gradient: give shared=... or leave out the watch")
    return found


class GradientWatch(nn.Module):
    """Measures `gradient_geometry` every `every` training steps and remembers the last result in buffers.

    shared: forward pass -> the tensors at which gradients are compared, parameters or features such as its image's patches.
    Each measurement costs one short backward pass per objective, from the loss down to those tensors.
    """

    def __init__(
        self, names: Sequence[str], *, every: int = 10, shared: Callable[[ForwardPass], Sequence[Tensor]] = last_matrices
    ):
        super().__init__()
        if every < 1:
            raise KitError(f"gradients are watched every {every} steps: choose 1 or more")
        self.names, self.every, self.shared = tuple(names), every, shared
        count = len(self.names)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("losses", torch.zeros(count))
        self.register_buffer("norms", torch.zeros(count))
        self.register_buffer("cosines", torch.zeros(count, count))
        self.fresh = False  # whether this very step was measured
        self._step: int | None = None  # the buffer's value, so that a GPU is asked once and not at every step

    def forward(self, forward_pass: ForwardPass, losses: Sequence[Tensor]) -> None:
        self.fresh = False
        if not (self.training and torch.is_grad_enabled()):
            return
        if self._step is None:
            self._step = int(self.step)
        if self._step % self.every == 0:
            norms, cosines = gradient_geometry(losses, list(self.shared(forward_pass)))
            values = torch.stack([loss.detach().float() for loss in losses])
            if world_size() > 1:
                dist.all_reduce(values)
                values /= world_size()
            for buffer, value in ((self.norms, norms), (self.cosines, cosines), (self.losses, values)):
                buffer.copy_(value)
            self.fresh = True
        self._step += 1
        self.step += 1

    def logs(self) -> dict[str, Tensor]:
        """The last measurement, named: "gradient/a" and "cosine/a, b"."""
        found = {f"gradient/{name}": self.norms[k].clone() for k, name in enumerate(self.names)}
        for (i, one), (j, two) in combinations(enumerate(self.names), 2):
            found[f"cosine/{one}, {two}"] = self.cosines[i, j].clone()
        return found

    def _load_from_state_dict(self, *arguments) -> None:
        self._step = None
        super()._load_from_state_dict(*arguments)
