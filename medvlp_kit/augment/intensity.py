"""Intensity only: what differs between two exposures of one patient. Nothing moves, so no word can become false."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..errors import KitError
from .pairs import Pairs, Policy


@dataclass(frozen=True)
class Intensity(Policy):
    """x -> (x^g - 1/2) c + 1/2 + b + noise, clamped to [0, 1], with g, c, b and the noise drawn for each image.

    ln g and ln c are uniform within `gamma` and `contrast` of 0, b within `brightness` of 0; noise is the standard
    deviation of white noise.
    """

    gamma: float = 0.25
    contrast: float = 0.2
    brightness: float = 0.08
    noise: float = 0.02
    guarantee: ClassVar[str] = "nothing moves: text, findings and regions stay as they are"

    def __post_init__(self):
        for name in ("gamma", "contrast", "brightness", "noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise KitError(f"Intensity({name}={getattr(self, name)!r}): give a number from 0 to 1")

    def __call__(self, pairs: Pairs, *, generator: torch.Generator) -> Pairs:
        images = pairs.images  # (B, C, H, W)
        drawn = 2 * torch.rand(3, len(images), 1, 1, 1, generator=generator) - 1  # uniform in [-1, 1)
        gamma, contrast, brightness = drawn.to(images.device)
        noise = self.noise * torch.randn(images.shape, generator=generator).to(images.device)
        changed = images.clamp(0, 1) ** torch.exp(self.gamma * gamma)
        changed = (changed - 0.5) * torch.exp(self.contrast * contrast) + 0.5 + self.brightness * brightness
        return pairs.but(images=(changed + noise).clamp(0, 1))
