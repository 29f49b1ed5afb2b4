"""Pretraining objectives: one idea a file, a pure function on tensors first, a thin module over a `ForwardPass` second."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import KitError
from .balance import Balance
from .gradients import GradientWatch, last_matrices

if TYPE_CHECKING:
    from ..model import ForwardPass


@dataclass(frozen=True)
class ObjectiveOutput:
    """A scalar loss and named scalars for the log."""

    loss: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module):
    """What a model is trained to do: `objective(forward_pass) -> ObjectiveOutput`."""

    name = "objective"

    def forward(self, forward_pass: ForwardPass) -> ObjectiveOutput:
        raise NotImplementedError


class WeightedSum(Objective):
    """Several objectives over one forward pass, each logged under its name: loss = sum of weight * loss.

    weights: fixed factors, 1 where none is given. balance: names -> `balance.Balance`, which weighs the losses further,
    for instance `Uncertainty` itself or `partial(Scheduled, schedule=...)`. watch: measure gradient norms and cosines
    every so many training steps, at the tensors `shared` names (see `gradients`); balancing by gradient norm needs it and
    takes 10 if None is given.
    """

    name = "weighted sum"

    def __init__(
        self,
        parts: dict[str, Objective],
        weights: dict[str, float] | None = None,
        *,
        balance: Callable[[tuple[str, ...]], Balance] = Balance,
        watch: int | None = None,
        shared: Callable[[ForwardPass], Sequence[Tensor]] = last_matrices,
    ):
        super().__init__()
        self.weights = {name: 1.0 for name in parts} | (weights or {})
        if set(self.weights) != set(parts):
            raise KitError(f"weights name {sorted(self.weights)} but the objectives are {sorted(parts)}: use the same")
        self.parts = nn.ModuleDict(parts)
        self.balance = balance(tuple(parts))
        watch = 10 if watch is None and self.balance.needs_gradients else watch
        self.watch = None if watch is None else GradientWatch(tuple(parts), every=watch, shared=shared)

    def forward(self, forward_pass: ForwardPass) -> ObjectiveOutput:
        outputs = {name: part(forward_pass) for name, part in self.parts.items()}
        logs = {name: output.loss.detach() for name, output in outputs.items()}
        logs |= {f"{name}/{key}": value for name, output in outputs.items() for key, value in output.logs.items()}
        losses = [self.weights[name] * output.loss for name, output in outputs.items()]
        if self.watch is not None:
            self.watch(forward_pass, losses)
            logs |= self.watch.logs()
        loss, weights = self.balance(torch.stack(losses), self.watch)
        if weights is not None:
            logs |= {f"weight/{name}": weight.detach() for name, weight in zip(self.parts, weights)}
        return ObjectiveOutput(loss, logs)
