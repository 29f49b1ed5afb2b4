"""Masked image modelling: hide most of a picture and reconstruct it.

He et al., "Masked autoencoders are scalable vision learners" (MAE, arXiv 2111.06377): a quarter of the patches goes
through the encoder, a light decoder draws the rest. Xie et al., "SimMIM" (arXiv 2111.09886): all patches go through,
the hidden ones as a learned token, and one linear layer draws them. Zhou et al., "MRM" (arXiv 2301.13155): the picture
to draw has a higher resolution than the one that is seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..encoders.features import ImageFeatures
from ..encoders.hidden import encode_painted, encode_visible, takes_token
from ..encoders.layers import Block
from ..errors import KitError, unknown
from ..fusion.inputs import sine_positions
from . import Objective, ObjectiveOutput

if TYPE_CHECKING:
    from ..encoders.image import ImageEncoder
    from ..model import ForwardPass, VisionLanguageModel

TARGETS = ("pixels", "normalised", "super_resolution")
SHARP_VIEW = "frontal x2"  # what `collate(views=...)` calls the frontal view at twice the size


def patchify(images: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, N, patch * patch * C): squares row by row, in each the pixels row by row, channels last."""
    if images.ndim != 4 or images.shape[-2] % patch or images.shape[-1] % patch:
        raise KitError(f"images of shape {tuple(images.shape)} do not divide into patches of {patch}: give (B, C, H, W) that do")
    rows, columns = images.shape[-2] // patch, images.shape[-1] // patch
    squares = images.unflatten(3, (columns, patch)).unflatten(2, (rows, patch))  # (B, C, h, p, w, p)
    return squares.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch: int, *, grid: tuple[int, int] | None = None) -> Tensor:
    """The inverse of `patchify`: (B, N, patch * patch * C) -> (B, C, H, W). grid (h, w); None for a square one."""
    count = patches.shape[1]
    rows, columns = grid or (round(count**0.5),) * 2
    if patches.ndim != 3 or rows * columns != count or patches.shape[2] % patch**2:
        raise KitError(f"patches of shape {tuple(patches.shape)} make no {rows} x {columns} grid of {patch} pixels a side")
    squares = patches.unflatten(2, (patch, patch, -1)).unflatten(1, (rows, columns))  # (B, h, w, p, p, C)
    return squares.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def random_masking(tokens: Tensor, *, ratio: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
    """Keep a random part of every row: tokens (B, N, D) -> (visible (B, K, D), mask (B, N), restore (B, N)).

    Exactly round(ratio * N) tokens are hidden, but one stays. mask is bool, True where hidden. Visible tokens are in
    random order; `torch.cat([visible, fillers], 1).gather(1, restore)` puts everything back in its place. To know
    where the visible ones stood, mask their indices: `random_masking(places[..., None], ...)`.
    """
    if tokens.ndim != 3:
        raise KitError(f"tokens have shape {tuple(tokens.shape)}: give (B, N, D)")
    if not 0 <= ratio < 1:
        raise KitError(f"the ratio of hidden patches is {ratio}: choose it from 0 to below 1")
    batch, count, _ = tokens.shape
    keep = max(1, count - round(ratio * count))
    device = tokens.device if generator is None else generator.device
    order = torch.rand(batch, count, generator=generator, device=device).to(tokens.device).argsort(dim=1)
    restore = order.argsort(dim=1)
    visible = tokens.gather(1, order[:, :keep, None].expand(-1, -1, tokens.shape[2]))
    return visible, restore >= keep, restore


def reconstruction_loss(prediction: Tensor, target: Tensor, mask: Tensor, *, normalise: bool = True) -> Tensor:
    """Mean squared error over the hidden patches (MAE): 1/|M| sum_{p in M} mean((prediction_p - target_p)^2).

    prediction, target: (B, N, P), patches as `patchify` makes them; mask (B, N), True where hidden; zero if nothing is.
    normalise: each target patch has its mean taken off and is divided by sqrt(variance + 1e-6), the variance being the
    unbiased one. Predicting zero everywhere then costs about 1.
    """
    target = normalise_patches(target) if normalise else target
    return _hidden_mean((prediction - target) ** 2, mask)


def absolute_loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute error over the hidden patches (SimMIM, equation 1). Shapes as in `reconstruction_loss`."""
    return _hidden_mean((prediction - target).abs(), mask)


def normalise_patches(patches: Tensor) -> Tensor:
    """Each patch (B, N, P) with mean 0 and variance 1; a patch of one colour becomes zero."""
    mean, variance = patches.mean(dim=-1, keepdim=True), patches.var(dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def _hidden_mean(errors: Tensor, mask: Tensor) -> Tensor:
    if errors.ndim != 3 or mask.shape != errors.shape[:2]:
        raise KitError(f"errors {tuple(errors.shape)} and mask {tuple(mask.shape)}: give (B, N, P) and (B, N)")
    weights = mask.to(errors.dtype)
    return (errors.mean(dim=-1) * weights).sum() / weights.sum().clamp(min=1)


@dataclass(frozen=True)
class VisiblePart:
    """features of the K visible patches; mask (B, N) True where hidden; restore (B, N) puts patches back in place."""

    features: ImageFeatures
    mask: Tensor
    restore: Tensor


def visible_part(forward_pass: ForwardPass, *, ratio: float) -> VisiblePart:
    """The principal view with `ratio` of its patches left out, drawn once a batch however many objectives ask."""

    def compute() -> VisiblePart:
        images, encoder = forward_pass.batch.images, forward_pass.model.image_encoder
        count = (images.shape[-2] // encoder.stride) * (images.shape[-1] // encoder.stride)
        cells = torch.arange(count, device=images.device).expand(len(images), -1)[..., None]  # (B, N, 1)
        places, mask, restore = random_masking(cells, ratio=ratio, generator=None)
        return VisiblePart(encode_visible(encoder, images, places[..., 0]), mask, restore)

    return forward_pass.cached(("visible part", ratio), compute)


class PixelTarget(nn.Module):
    """What is to be drawn: (B, N, P) patches of a batch, and the loss that belongs to them.

    kind: "pixels" on the scale the encoder sees, "normalised" patch by patch, or "super_resolution", normalised
    patches of the view `frontal x2`, so that each patch of p pixels a side is drawn with 2 p.
    """

    def __init__(self, encoder: ImageEncoder, kind: str):
        super().__init__()
        if kind not in TARGETS:
            raise unknown("target of reconstruction", kind, TARGETS)
        self.kind, self.cell = kind, encoder.image_size // encoder.grid[0] * (2 if kind == "super_resolution" else 1)
        self.width = self.cell**2 * encoder.channels

    def forward(self, forward_pass: ForwardPass) -> Tensor:
        return forward_pass.cached(("pixel target", self.kind, self.cell), lambda: self._patches(forward_pass))

    def loss(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        with torch.autocast(prediction.device.type, enabled=False):
            prediction = prediction if prediction.dtype == torch.float64 else prediction.float()
            return reconstruction_loss(prediction, target, mask, normalise=self.kind != "pixels")

    def _patches(self, forward_pass: ForwardPass) -> Tensor:
        encoder, batch = forward_pass.model.image_encoder, forward_pass.batch
        if self.kind != "super_resolution":
            return patchify(encoder.normalise(batch.images), self.cell)
        if SHARP_VIEW not in batch.views:
            raise KitError(f"super-resolution draws the view {SHARP_VIEW!r}: give the recipe views=('frontal', {SHARP_VIEW!r})")
        return patchify(batch.views[SHARP_VIEW], self.cell)


class PatchDecoder(nn.Module):
    """A light transformer that draws all patches from the visible ones.

    forward(visible (B, K, D), restore (B, N), grid) -> (B, N, out). A learned token stands in every hidden place; all
    get sine positions of the grid.
    """

    def __init__(self, width: int, out: int, *, decoder_width: int = 64, layers: int = 2, heads: int = 4):
        super().__init__()
        self.project = nn.Linear(width, decoder_width)
        self.token = nn.Parameter(torch.randn(decoder_width) * 0.02)
        self.blocks = nn.ModuleList(Block(decoder_width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(decoder_width)
        self.draw = nn.Linear(decoder_width, out)

    def forward(self, visible: Tensor, restore: Tensor, *, grid: tuple[int, int]) -> Tensor:
        seen = self.project(visible)  # (B, K, D)
        hidden = self.token.to(seen.dtype).expand(len(seen), restore.shape[1] - seen.shape[1], -1)
        tokens = torch.cat([seen, hidden], dim=1).gather(1, restore[..., None].expand(-1, -1, seen.shape[-1]))
        tokens = tokens + sine_positions(grid, tokens.shape[-1], device=tokens.device).to(tokens.dtype)
        for block in self.blocks:
            tokens = block(tokens)
        return self.draw(self.norm(tokens))


class MaskedAutoencoder(Objective):
    """MAE: the encoder sees a quarter of the patches, the decoder draws the others. Only ViTs can leave patches out.

    model: the model it is for; sizes are read from it, nothing of it is kept. target: see `PixelTarget`. The decoder's
    sizes go to `PatchDecoder`.
    """

    name = "masked image"

    def __init__(self, model: VisionLanguageModel, *, ratio: float = 0.75, target: str = "normalised", **decoder):
        super().__init__()
        if not takes_token(model.image_encoder):
            raise KitError("MAE leaves patches out, which needs a ViT: take image_encoder='kit_vit', or SimMIM for a CNN")
        self.ratio, self.target = ratio, PixelTarget(model.image_encoder, target)
        self.decoder = PatchDecoder(model.image_encoder.width, self.target.width, **decoder)

    def reconstruct(self, forward_pass: ForwardPass) -> tuple[Tensor, VisiblePart]:
        """Drawn patches (B, N, P) and what was seen."""
        part = visible_part(forward_pass, ratio=self.ratio)
        return self.decoder(part.features.patches, part.restore, grid=part.features.grid), part

    def forward(self, forward_pass: ForwardPass) -> ObjectiveOutput:
        drawn, part = self.reconstruct(forward_pass)
        loss = self.target.loss(drawn, self.target(forward_pass), part.mask)
        return ObjectiveOutput(loss, {"patches hidden": part.mask.float().mean()})


class SimMIM(Objective):
    """Every patch goes through the encoder, the hidden ones as a learned token (in a CNN: as grey), and a linear layer
    draws them; L1 on pixels, as the encoder sees them, over the hidden patches.

    unit: the side of what is hidden together, in patches; the published mask has squares of 32 pixels.
    """

    name = "masked image"

    def __init__(self, model: VisionLanguageModel, *, ratio: float = 0.6, unit: int = 1):
        super().__init__()
        encoder = model.image_encoder
        if encoder.grid[0] % unit or encoder.grid[1] % unit:
            raise KitError(f"unit={unit} does not divide the encoder's {encoder.grid[0]} x {encoder.grid[1]} patches")
        self.ratio, self.unit, self.grid = ratio, unit, encoder.grid
        self.target = PixelTarget(encoder, "pixels")
        self.token = nn.Parameter(torch.randn(encoder.width) * 0.02) if takes_token(encoder) else None
        self.draw = nn.Linear(encoder.width, self.target.width)

    def mask(self, batch: int, *, device, generator: torch.Generator | None = None) -> Tensor:
        """(B, N) bool, True where hidden: the same number of squares of `unit` x `unit` patches in every image."""
        rows, columns = self.grid[0] // self.unit, self.grid[1] // self.unit
        squares = torch.zeros(batch, rows * columns, 1, device=device)
        coarse = random_masking(squares, ratio=self.ratio, generator=generator)[1].view(batch, rows, columns)
        return coarse.repeat_interleave(self.unit, 1).repeat_interleave(self.unit, 2).flatten(1)

    def forward(self, forward_pass: ForwardPass) -> ObjectiveOutput:
        images = forward_pass.batch.images
        mask = forward_pass.cached(("painted", self.ratio, self.unit), lambda: self.mask(len(images), device=images.device))
        features = encode_painted(forward_pass.model.image_encoder, images, mask, self.token)
        drawn, target = self.draw(features.patches), self.target(forward_pass)
        with torch.autocast(images.device.type, enabled=False):
            loss = absolute_loss(drawn if drawn.dtype == torch.float64 else drawn.float(), target, mask)
        return ObjectiveOutput(loss, {"patches hidden": mask.float().mean()})
