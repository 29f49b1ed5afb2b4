"""Several processes, one batch: features are gathered with their gradient, so the loss is that of the global batch."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    """All-gather along the batch; the backward pass sums over processes what each of them wants of every row."""

    @staticmethod
    def forward(context, local: Tensor) -> Tensor:
        context.rows = local.shape[0]
        parts = [torch.empty_like(local) for _ in range(world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        first = dist.get_rank() * context.rows
        return gradient[first : first + context.rows]


def gather(local: Tensor) -> Tensor:
    """(B, ...) on each of P processes -> (P * B, ...) on all of them, in rank order, with gradients.

    Every process computes the same global loss from the gathered rows. The backward pass hands each process the sum
    over processes, P times its own share; data-parallel averaging divides by P, which leaves the single-process
    gradient. All processes must hold the same number of rows.
    """
    return local if world_size() == 1 else _Gather.apply(local)
