"""How much each objective of a hybrid counts: fixed, scheduled, by uncertainty, or by the size of its gradient.

A balance turns K losses into one: `balance(losses (K,), gradients) -> (loss, weights (K,))`. Whatever it remembers lies in
buffers or parameters, so a resumed run goes on with the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import KitError

if TYPE_CHECKING:
    from .gradients import GradientWatch


class Balance(nn.Module):
    """Fixed: every loss counts once. `names` are those of the K objectives, in order."""

    needs_gradients = False

    def __init__(self, names: Sequence[str]):
        super().__init__()
        self.names = tuple(names)

    def weights(self) -> Tensor | None:
        """(K,), or None where they are always one."""
        return None

    def forward(self, losses: Tensor, gradients: GradientWatch | None = None) -> tuple[Tensor, Tensor | None]:
        """losses (K,) -> the total, and the weights it was made with. In training it may also move them."""
        weights = self.weights()
        return (losses if weights is None else weights * losses).sum(), weights


class Scheduled(Balance):
    """Weights that follow the step: straight lines between given points, level before the first and after the last.

    schedule: name -> ((step, weight), ...), steps rising; a name that is missing counts once throughout. For instance
    {"matching": ((0, 0.0), (500, 1.0))} lets matching begin when there are embeddings to draw hard negatives from.
    """

    def __init__(self, names: Sequence[str], schedule: Mapping[str, Sequence[tuple[float, float]]]):
        super().__init__(names)
        for name, points in schedule.items():
            if name not in self.names:
                raise KitError(f"the schedule names {name!r} but the objectives are {', '.join(self.names)}: use the same")
            steps = [step for step, _ in points]
            if not points or any(one >= two for one, two in zip(steps, steps[1:])):
                raise KitError(f"the schedule of {name!r} has steps {steps}: give at least one point, steps rising")
        self.schedule = {name: tuple(map(tuple, points)) for name, points in schedule.items()}
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def weights(self) -> Tensor:
        found = []
        for name in self.names:
            points = self.schedule.get(name, ((0, 1.0),))
            weight = torch.full((), points[0][1], device=self.step.device)
            for (start, low), (end, high) in zip(points, points[1:]):
                weight = weight + (high - low) * ((self.step - start) / (end - start)).clamp(0, 1)
            found.append(weight)
        return torch.stack(found)

    def forward(self, losses: Tensor, gradients: GradientWatch | None = None) -> tuple[Tensor, Tensor]:
        found = super().forward(losses)
        if self.training:
            self.step += 1
        return found


class Uncertainty(Balance):
    """Learned log variances (Kendall, Gal and Cipolla, "Multi-task learning using uncertainty", CVPR 2018):

        loss = sum_k exp(-s_k) L_k + s_k

    twice the paper's form, so that weights start at one. At rest exp(-s_k) = 1 / L_k: a loss that cannot fall counts
    less, whatever its gradient. The total can be negative; weights are learned at the rate of all parameters.
    """

    def __init__(self, names: Sequence[str]):
        super().__init__(names)
        self.log_variance = nn.Parameter(torch.zeros(len(self.names)))

    def weights(self) -> Tensor:
        return torch.exp(-self.log_variance)

    def forward(self, losses: Tensor, gradients: GradientWatch | None = None) -> tuple[Tensor, Tensor]:
        total, weights = super().forward(losses)
        return total + self.log_variance.sum(), weights


class GradientNorm(Balance):
    """Weights under which every objective pulls equally hard at the shared parameters (after GradNorm; Chen et al.,
    ICML 2018, whose fixed point is solved for here instead of descended to):

        w_k ~ r_k^alpha / |gradient of L_k|,     r_k = (L_k / L_k at first) / mean of these,     mean of w = 1

    alpha > 0 gives more to objectives that learn slowly; 0 looks at the norms alone. memory: share of the old weights
    that stays at each measurement (`GradientWatch` says how often). An objective without a gradient there keeps 1.
    """

    needs_gradients = True

    def __init__(self, names: Sequence[str], *, alpha: float = 0.0, memory: float = 0.9):
        super().__init__(names)
        if alpha < 0 or not 0 <= memory < 1:
            raise KitError(f"alpha={alpha}, memory={memory}: choose alpha not below 0 and memory in [0, 1)")
        self.alpha, self.memory = alpha, memory
        self.register_buffer("current", torch.ones(len(self.names)))
        self.register_buffer("first", torch.zeros(len(self.names)))  # losses at the first measurement
        self.register_buffer("measured", torch.zeros((), dtype=torch.int64))

    def weights(self) -> Tensor:
        return self.current.clone()  # the graph of this step must not see the next change

    def forward(self, losses: Tensor, gradients: GradientWatch | None = None) -> tuple[Tensor, Tensor]:
        if gradients is not None and gradients.fresh:
            self.adapt(gradients.losses, gradients.norms)
        return super().forward(losses)

    @torch.no_grad()
    def adapt(self, losses: Tensor, norms: Tensor) -> None:
        """Move towards the weights of the formula: losses and gradient norms (K,), the same on every process."""
        begin = self.measured == 0
        self.first.copy_(torch.where(begin, losses.float(), self.first))
        tiny = torch.finfo(torch.float32).tiny
        pace = (losses.float() / self.first.clamp(min=tiny)).clamp(min=1e-3)
        pace = (pace / pace.mean()) ** self.alpha
        pulls = norms > 0
        wanted = (pace / norms.clamp(min=tiny)).where(pulls, 0.0)
        wanted = (wanted * pulls.sum() / wanted.sum().clamp(min=tiny)).where(pulls, 1.0)
        memory = torch.where(begin, 0.0, self.memory)
        self.current.copy_(memory * self.current + (1 - memory) * wanted)
        self.measured += 1
