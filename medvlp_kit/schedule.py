"""What the optimiser does at step k, as pure functions of k: nothing to save, nothing to restore on resume."""

from __future__ import annotations

import math

import torch
from torch import nn

from .budget import Budget


def learning_rate(step: int, budget: Budget, *, steps: int) -> float:
    """Linear warm-up over the first `warmup_fraction` of the run, then half a cosine down to zero."""
    warmup = max(1, round(budget.warmup_fraction * steps))
    if step < warmup:
        return budget.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return budget.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(module: nn.Module, *, weight_decay: float = 0.05) -> torch.optim.AdamW:
    """AdamW; matrices decay, vectors and scalars (biases, norms, the temperature) do not."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), eps=1e-6)


def indices_of_step(step: int, *, studies: int, batch_size: int, seed: int) -> list[int]:
    """The studies of global batch `step`. Each epoch is one shuffle of all studies, its last partial batch dropped."""
    steps_per_epoch = studies // batch_size
    epoch, position = divmod(step, steps_per_epoch)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(studies, generator=generator)
    return order[position * batch_size : (position + 1) * batch_size].tolist()
