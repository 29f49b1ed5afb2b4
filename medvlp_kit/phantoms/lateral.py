"""The lateral view (a first sketch: an empty film)."""

from __future__ import annotations

import torch


def draw(scenes, size, device):
    """Pictures (B, H, W) and covers."""
    return torch.zeros((len(scenes), size, size), device=device), []
