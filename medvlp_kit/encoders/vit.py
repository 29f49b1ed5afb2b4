"""A Vision Transformer, written out (Dosovitskiy et al. 2021): patches, a class token, learned positions, blocks.

With the weights of a timm ViT (`load_timm`) it gives the same numbers. `stem="convolution"` replaces the one big patch
projection by a few small strided convolutions (Xiao et al. 2021, "Early convolutions help transformers see better"),
which learns from far fewer images.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import KitError
from .image import ImageEncoder
from .layers import Block


class PatchEmbedding(nn.Module):
    """Cut an image into squares and project each: (B, C, H, W) -> (B, D, H / patch, W / patch).

    A convolution whose stride equals its kernel does both at once.
    """

    def __init__(self, channels: int, width: int, *, patch: int):
        super().__init__()
        self.project = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        return self.project(images)


class ConvolutionStem(nn.Sequential):
    """The same grid, reached by 3 x 3 convolutions that halve it step by step: (B, C, H, W) -> (B, D, h, w)."""

    def __init__(self, channels: int, width: int, *, patch: int):
        steps = int(math.log2(patch))
        if patch < 2 or 2**steps != patch:
            raise KitError(f"patch={patch}: a convolution stem halves the image at each step, so use a power of two")
        widths = [channels, *(max(8, width >> (steps - 1 - i)) for i in range(steps))]
        layers: list[nn.Module] = []
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.GELU()]
        super().__init__(*layers, nn.Conv2d(widths[-1], width, 1))


class VisionTransformerEncoder(ImageEncoder):
    """images (B, C, H, W) in [0, 1] -> ImageFeatures, as `image.ImageEncoder` says.

    Any H and W that the patch divides: positions are learned on the grid of `image_size` and interpolated to others.
    patch None: an eighth of the image, 8 x 8 patches, but at most 16 pixels. `layers` blocks of `heads` heads.
    """

    def __init__(
        self, *, channels: int = 1, image_size: int, pooling: str = "average", patch: int | None = None,
        width: int = 192, layers: int = 4, heads: int = 3, ratio: float = 4.0, dropout: float = 0.0,
        stem: str = "patch",
    ):  # fmt: skip
        patch = patch or min(16, max(2, image_size // 8))
        if image_size % patch:
            raise KitError(f"patches of {patch} pixels do not tile {image_size} x {image_size}: choose another patch")
        if stem not in ("patch", "convolution"):
            raise KitError(f"stem={stem!r}: a ViT starts with 'patch' or 'convolution'")
        side = image_size // patch
        super().__init__(
            width=width, channels=channels, image_size=image_size, grid=(side, side), pooling=pooling, has_cls=True,
            any_size=True,
        )  # fmt: skip
        self.stride = patch
        self.stem = (PatchEmbedding if stem == "patch" else ConvolutionStem)(channels, width, patch=patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + side * side, width))
        self.blocks = nn.ModuleList(Block(width, heads, ratio=ratio, dropout=dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self._initialise()

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens, grid = self.embed(images)
        tokens = self.run_blocks(tokens)
        return self._as_map(tokens, grid), tokens[:, 0]

    def encode_visible(self, images: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Only the patches `places` (B, K) of normalised images, each at its own position: (B, K, D), class (B, D).

        The others never enter a block: a quarter of the patches is about a quarter of the work (MAE).
        """
        tokens, _ = self.embed(images)
        patches = tokens[:, 1:].gather(1, places[..., None].expand(-1, -1, self.width))  # (B, K, D)
        tokens = self.run_blocks(torch.cat([tokens[:, :1], patches], dim=1))
        return tokens[:, 1:], tokens[:, 0]

    def run_blocks(self, tokens: Tensor) -> Tensor:
        """Embedded tokens (B, L, D) through all blocks and the last norm."""
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def forward_levels(self, images: Tensor) -> list[Tensor]:
        """The patches after each block, (B, D, h, w) each: a ViT keeps one resolution."""
        tokens, grid = self.embed(self.normalise(images))
        levels = []
        for block in self.blocks:
            tokens = block(tokens)
            levels.append(self._as_map(self.norm(tokens), grid))
        return levels

    def embed(
        self, images: Tensor, *, hidden: Tensor | None = None, token: Tensor | None = None
    ) -> tuple[Tensor, tuple[int, int]]:
        """Normalised images (B, C, H, W) -> tokens (B, 1 + h * w, D), the class token first, and the grid (h, w).

        Patches where hidden (B, h * w) is True are replaced by `token` (D,) before they get their position.
        """
        maps = self.stem(images)  # (B, D, h, w)
        grid = tuple(maps.shape[-2:])
        patches = maps.flatten(2).transpose(1, 2)  # (B, N, D)
        if hidden is not None:
            patches = torch.where(hidden[..., None], token.to(patches.dtype), patches)
        tokens = torch.cat([self.cls.expand(len(images), -1, -1), patches], dim=1)
        return tokens + self.positions_for(grid), grid

    def positions_for(self, grid: tuple[int, int]) -> Tensor:
        """Positions (1, 1 + h * w, D) of a grid; the learned ones, or these interpolated (bicubic) to another size."""
        if grid == self.grid:
            return self.positions
        cls, patches = self.positions[:, :1], self.positions[:, 1:]
        maps = patches.transpose(1, 2).unflatten(2, self.grid)  # (1, D, h, w)
        maps = F.interpolate(maps, size=grid, mode="bicubic", antialias=True, align_corners=False)
        return torch.cat([cls, maps.flatten(2).transpose(1, 2)], dim=1)

    def check(self, images: Tensor) -> None:
        super().check(images)
        if images.shape[-1] % self.stride or images.shape[-2] % self.stride:
            raise KitError(
                f"images of {images.shape[-2]} x {images.shape[-1]} pixels: patches of {self.stride} do not tile them; "
                f"use a multiple of {self.stride}"
            )

    def load_timm(self, state: dict[str, Tensor]) -> VisionTransformerEncoder:
        """Take the weights of a timm VisionTransformer (its `state_dict()`); sizes must agree. Returns the encoder."""
        renamed: dict[str, Tensor] = {}
        for name, value in state.items():
            if name.endswith(("attn.qkv.weight", "attn.qkv.bias")):  # timm keeps the three projections in one
                kind = name.rpartition(".")[2]
                for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    renamed[f"{name.partition('.attn.')[0]}.attention.{part}.{kind}"] = third
                continue
            for theirs, ours in _TIMM.items():
                name = name.replace(theirs, ours)
            if not name.startswith(("head.", "fc_norm.")):
                renamed[name] = value
        try:
            self.load_state_dict(renamed)
        except RuntimeError as error:
            reason = " ".join(str(error).split()[:40])
            raise KitError(f"these weights do not fit this ViT, check its sizes: {reason}") from error
        return self

    @staticmethod
    def _as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return tokens[:, 1:].transpose(1, 2).unflatten(2, grid)

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.positions, std=0.02)
        nn.init.normal_(self.cls, std=1e-6)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                # Scaled to the layer's width: the customary deviation of 0.02 fits a width of 768, but makes the blocks
                # of a small ViT so weak at first that it learns much more slowly.
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)


_TIMM = {
    "patch_embed.proj": "stem.project", "cls_token": "cls", "pos_embed": "positions", "attn.proj": "attention.output",
    "norm1": "attention_norm", "norm2": "feed_forward_norm", "mlp.fc1": "feed_forward.0", "mlp.fc2": "feed_forward.2",
}  # fmt: skip
