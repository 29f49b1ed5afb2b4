"""Banks of drawn structure that every picture borrows from: rib cages, vessel trees, noise, marker letters.

Ribs and vessels are drawn once, finely, in a lung's own frame: u runs from the midline (0) to the widest point of
the lung (1), v from the apex (0) to the costophrenic angle (1). A picture then samples one variant at the place and
size of its own lung. All banks come from fixed seeds, so they are the same in every process.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor
from torch.nn import functional

VARIANTS = 12
U_RANGE, V_RANGE = (-0.12, 1.16), (-0.12, 1.22)  # what an atlas page covers
_WIDTH, _HEIGHT = 312, 520  # of a page as drawn; sampled smaller
APEX_START = 0.20  # u of the lung's outer edge at the very top
RIBS = 10


def outer_edge(v):
    """u of the outer lung edge at height v; torch or numpy, any shape."""
    clamp = torch.clamp if isinstance(v, Tensor) else (lambda x, low, high: np.clip(x, low, high))
    rise = 1 - (1 - clamp(v, 0.0, 1.0)) ** 2.6
    return APEX_START + (1 - APEX_START) * (rise + 1e-6) ** 0.5 - 0.05 * clamp(v - 0.8, 0.0, 0.4)


def _pixels(points: np.ndarray, scale: float = 1.0) -> list[tuple[float, float]]:
    u, v = points[:, 0], points[:, 1]
    x = (u - U_RANGE[0]) / (U_RANGE[1] - U_RANGE[0]) * _WIDTH * scale
    y = (v - V_RANGE[0]) / (V_RANGE[1] - V_RANGE[0]) * _HEIGHT * scale
    return list(zip(x.tolist(), y.tolist(), strict=True))


def posterior_ribs(variant: int) -> np.ndarray:
    """Centre lines (RIBS, 40, 2) of the posterior ribs of one rib cage, in (u, v), from the spine outwards."""
    generator = np.random.default_rng([7, variant])
    spacing, slope = generator.uniform(0.088, 0.098), generator.uniform(0.85, 1.15)
    s = np.linspace(0, 1, 40)
    ribs = []
    for k in range(RIBS):
        head = -0.045 + spacing * k + generator.uniform(-0.004, 0.004)
        drop = slope * (0.075 + 0.012 * k)
        tail = head + drop
        end = float(outer_edge(np.array(min(tail, 1.0)))) + 0.035
        v = head - 0.035 * np.sin(np.pi * np.minimum(s * 1.35, 1.0)) * (1 - 0.3 * k / RIBS) + drop * s**2.4
        u = 0.08 + (end - 0.08) * np.sin(s * np.pi / 2) ** 0.92
        ribs.append(np.stack([u, v], axis=1))
    return np.stack(ribs)


def _anterior_ribs(variant: int) -> list[np.ndarray]:
    generator = np.random.default_rng([8, variant])
    posterior = posterior_ribs(variant)
    s = np.linspace(0, 1, 40)
    lines = []
    for k in range(7):
        u_end, v_end = posterior[k, -1]
        medial = generator.uniform(0.30, 0.40) + 0.035 * k
        fall = generator.uniform(0.17, 0.2) + 0.012 * k
        u = u_end - (u_end - medial) * (1 - np.cos(s * np.pi / 2)) ** 0.8
        v = v_end + fall * np.sin(s * np.pi / 2) ** 1.1
        lines.append(np.stack([u, v], axis=1))
    return lines


def _tube(points: np.ndarray, width: float, *, rim: float) -> np.ndarray:
    """A bone seen from the side: a bright rim around a fainter core, (H, W) in [0, 1]."""
    page = Image.new("L", (_WIDTH, _HEIGHT))
    pen = ImageDraw.Draw(page)
    path = _pixels(points)
    pen.line(path, fill=255, width=round(width * _HEIGHT), joint="curve")
    pen.line(path, fill=round(255 * (1 - rim)), width=max(1, round(0.62 * width * _HEIGHT)), joint="curve")
    return np.asarray(page.filter(ImageFilter.GaussianBlur(1.3)), dtype=np.float32) / 255


def _cage(variant: int) -> np.ndarray:
    generator = np.random.default_rng([9, variant])
    width = generator.uniform(0.034, 0.042)
    behind = np.zeros((_HEIGHT, _WIDTH), dtype=np.float32)
    for k, rib in enumerate(posterior_ribs(variant)):
        behind = np.maximum(behind, _tube(rib, width * (0.85 + 0.02 * k), rim=0.42))
    front = np.zeros_like(behind)
    fade = np.ones_like(behind)
    for rib in _anterior_ribs(variant):
        front = np.maximum(front, _tube(rib, width * 1.18, rim=0.25))
    columns = np.linspace(*U_RANGE, _WIDTH, dtype=np.float32)
    fade *= np.clip((columns - 0.28) / 0.3, 0, 1)[None]  # anterior ribs turn to cartilage before the sternum
    return behind + 0.62 * front * fade


def _tree(variant: int, *, all_round: bool) -> np.ndarray:
    """A lung's vessels, (H, W): thick and dense at the hilum, branching and thinning outwards."""
    generator = np.random.default_rng([10, variant, int(all_round)])
    page = Image.new("F", (_WIDTH, _HEIGHT))
    pen = ImageDraw.Draw(page)
    hilum = np.array([0.5, 0.46]) if all_round else np.array([0.235, 0.45 + generator.uniform(-0.03, 0.03)])
    aspect = np.array([1.0, 0.54])  # u and v units differ on the page
    segments = []

    def grow(start, angle, length, width, depth):
        point, steps = start, max(3, int(length / 0.035))
        for k in range(steps):
            angle += generator.normal(0, 0.11)
            step = length / steps * np.array([np.cos(angle), np.sin(angle)]) * aspect
            taper = width * (1 - 0.45 * k / steps)
            segments.append((taper, point, point + step))
            point = point + step
            if depth and k and generator.random() < 0.22:
                turn = generator.choice([-1, 1]) * generator.uniform(0.4, 0.9)
                grow(point, angle + turn, length * (1 - k / steps) * 0.8 + 0.05, taper * 0.62, depth - 1)
        if depth:
            for turn in (-1, 1):
                grow(point, angle + turn * generator.uniform(0.2, 0.45), length * 0.62, width * 0.5, depth - 1)

    fan = np.linspace(-np.pi, np.pi, 17)[:-1] if all_round else np.linspace(-1.42, 1.42, 11)
    for angle in fan:
        down = np.sin(angle) > 0.1
        start = hilum + generator.normal(0, 0.012, 2)
        grow(start, angle + generator.normal(0, 0.1), generator.uniform(0.28, 0.36) + 0.1 * down, 0.0195, 3)
    for taper, start, stop in sorted(segments, key=lambda segment: segment[0]):
        width = max(1, round(taper * _HEIGHT))
        pen.line(_pixels(np.stack([start, stop])), fill=min(1.0, 0.12 + taper * 46), width=width)
    for _ in range(9):  # arteries and veins of the hilum, seen end on or crossing
        centre = hilum + generator.normal(0, 1, 2) * np.array([0.025, 0.045])
        (x, y), radius = _pixels(centre[None])[0], generator.uniform(0.010, 0.022) * _HEIGHT
        box = (x - radius * 0.8, y - radius * 1.2, x + radius * 0.8, y + radius)
        pen.ellipse(box, fill=generator.uniform(0.6, 0.9))
    picture = torch.from_numpy(np.array(page, dtype=np.float32))[None, None]
    kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    picture = functional.conv2d(picture, kernel.view(1, 1, 1, 5), padding=(0, 2))
    return functional.conv2d(picture, kernel.view(1, 1, 5, 1), padding=(2, 0))[0, 0].numpy()


@lru_cache(maxsize=1)
def _pages() -> Tensor:
    drawn = [np.stack([_cage(v), _tree(v, all_round=False), _tree(v, all_round=True)]) for v in range(VARIANTS)]
    return torch.from_numpy(np.stack(drawn))


@lru_cache(maxsize=32)
def pages(size: int, device: str, view: str) -> Tensor:
    """Pages no finer than a picture of `size` shows: (VARIANTS, 2, height, width), ribs and vessels, for the frontal
    view; (VARIANTS, 1, height, width), the vessels of both lungs, for the lateral."""
    height = min(_HEIGHT, max(24, round(0.95 * size)))
    width = min(_WIDTH, max(16, round(0.60 * size)))
    layers = slice(0, 2) if view == "frontal" else slice(2, 3)
    return functional.interpolate(_pages()[:, layers], (height, width), mode="area").to(device).contiguous()


@lru_cache(maxsize=1)
def rib_lines() -> Tensor:
    """(VARIANTS, RIBS, 40, 2) centre lines of the posterior ribs in (u, v)."""
    return torch.from_numpy(np.stack([posterior_ribs(v) for v in range(VARIANTS)])).float()


NOISE_MARGIN = 96  # offsets a picture may take into a noise bank


@lru_cache(maxsize=16)
def noise(size: int, device: str) -> tuple[Tensor, Tensor]:
    """Banks (size + NOISE_MARGIN) square: white noise, and clouds a tenth of a picture wide; unit variance."""
    generator = torch.Generator().manual_seed(20_240 + size)
    side = size + NOISE_MARGIN
    white = torch.randn((side, side), generator=generator)
    clouds = torch.zeros(side, side)
    for cells, weight in ((8, 1.0), (18, 0.8), (40, 0.45)):
        many = max(4, round(cells * side / size))
        coarse = torch.randn((1, 1, many, many), generator=generator)
        clouds += weight * functional.interpolate(coarse, (side, side), mode="bicubic", align_corners=False)[0, 0]
    return white.to(device), ((clouds - clouds.mean()) / clouds.std()).to(device)


def slices(bank: Tensor, size: int, across: Tensor, down: Tensor) -> Tensor:
    """Windows (n, size, size) of a bank, at offsets `across` and `down` (n,) int64 of at most NOISE_MARGIN."""
    return bank.unfold(0, size, 1).unfold(1, size, 1)[down, across]


@lru_cache(maxsize=16)
def letters(size: int, device: str) -> Tensor:
    """(2, h, w): the marker letters R and L, about a fourteenth of the picture high."""
    height = max(5, round(size / 14))
    drawn = []
    for letter in "RL":
        page = Image.new("L", (160, 200))
        ImageDraw.Draw(page).text((80, 100), letter, fill=255, font=ImageFont.load_default(170), anchor="mm")
        box = page.getbbox()
        page = page.crop(box).resize((max(3, round(height * 0.7)), height), Image.Resampling.BOX)
        drawn.append(torch.from_numpy(np.asarray(page, dtype=np.float32) / 255))
    return torch.stack(drawn).to(device)
