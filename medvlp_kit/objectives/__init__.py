"""Pretraining objectives: one idea a file, a pure function on tensors first, a thin module over a `ForwardPass` second."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..errors import KitError

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
    """Several objectives over one forward pass: loss = sum of weight * loss. Each part is logged under its name."""

    name = "weighted sum"

    def __init__(self, parts: dict[str, Objective], weights: dict[str, float] | None = None):
        super().__init__()
        self.weights = {name: 1.0 for name in parts} | (weights or {})
        if set(self.weights) != set(parts):
            raise KitError(f"weights name {sorted(self.weights)} but the objectives are {sorted(parts)}: use the same")
        self.parts = nn.ModuleDict(parts)

    def forward(self, forward_pass: ForwardPass) -> ObjectiveOutput:
        outputs = {name: part(forward_pass) for name, part in self.parts.items()}
        logs = {name: output.loss.detach() for name, output in outputs.items()}
        logs |= {f"{name}/{key}": value for name, output in outputs.items() for key, value in output.logs.items()}
        return ObjectiveOutput(sum(self.weights[name] * output.loss for name, output in outputs.items()), logs)
