"""Image encoders: any timm family by name, or the ViT written out in `vit.py`, all returning `ImageFeatures`.

An encoder takes pixels in [0, 1] and normalises them itself, so no caller can forget it or do it twice.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from ..errors import KitError, unknown
from .features import ImageFeatures
from .layers import AttentionPool

POOLINGS = ("average", "attention", "cls")
MEAN, DEVIATION = 0.5, 0.25  # of the normalisation when no pretrained weights bring their own
SMALLEST_GRID = 4  # patches a side that the default level keeps: on fewer, nothing can be located


class ImageEncoder(nn.Module):
    """What every image encoder shares: normalisation, shape checks and pooling.

    forward(images (B, C, H, W) float in [0, 1]) -> ImageFeatures of width `width`; `grid` (h, w) is that of images of
    `image_size`. Subclasses give `encode`, and `forward_levels` for those who need several resolutions.
    """

    def __init__(
        self, *, width: int, channels: int, image_size: int, grid: tuple[int, int], pooling: str, has_cls: bool,
        any_size: bool, mean: Tensor | None = None, deviation: Tensor | None = None,
    ):  # fmt: skip
        super().__init__()
        if pooling not in POOLINGS:
            raise unknown("pooling", pooling, POOLINGS)
        if pooling == "cls" and not has_cls:
            raise KitError("pooling='cls': this image encoder has no class token; use 'average' or 'attention'")
        self.width, self.channels, self.image_size, self.grid = width, channels, image_size, grid
        self.pooling, self.any_size = pooling, any_size
        self.pool = AttentionPool(width) if pooling == "attention" else None
        mean = torch.full((channels,), MEAN) if mean is None else mean
        deviation = torch.full((channels,), DEVIATION) if deviation is None else deviation
        self.register_buffer("mean", mean.view(1, channels, 1, 1), persistent=False)
        self.register_buffer("deviation", deviation.view(1, channels, 1, 1), persistent=False)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Normalised images (B, C, H, W) -> feature map (B, D, h, w) and class token (B, D) or None."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> ImageFeatures:
        maps, cls = self.encode(self.normalise(images))
        return self.collect(maps.flatten(2).transpose(1, 2), cls, grid=tuple(maps.shape[-2:]))

    def collect(
        self, patches: Tensor, cls: Tensor | None, *, grid: tuple[int, int], places: Tensor | None = None
    ) -> ImageFeatures:
        """Features of patches (B, N, D) and class token (B, D): what there is, pooled."""
        if self.pooling == "cls":
            pooled = cls
        else:
            pooled = patches.mean(dim=1) if self.pool is None else self.pool(patches)  # (B, D)
        return ImageFeatures(pooled=pooled, patches=patches, grid=grid, places=places)

    def forward_levels(self, images: Tensor) -> list[Tensor]:
        """Feature maps (B, D_l, h_l, w_l), finest first, the last at the level of `forward`'s patches."""
        raise NotImplementedError

    def normalise(self, images: Tensor) -> Tensor:
        """(images - mean) / deviation, after a check of the shape."""
        self.check(images)
        return (images - self.mean) / self.deviation

    def check(self, images: Tensor) -> None:
        """One line when the images are not what this encoder was built for."""
        if images.dim() != 4 or images.shape[1] != self.channels or not images.is_floating_point():
            raise KitError(
                f"images of shape {tuple(images.shape)} and type {images.dtype}: this encoder takes float images "
                f"(B, {self.channels}, H, W); build it with channels=... to match"
            )
        size = tuple(images.shape[-2:])
        if not self.any_size and size != (self.image_size, self.image_size):
            raise KitError(
                f"images of {size[0]} x {size[1]} pixels: this encoder was built for {self.image_size} x "
                f"{self.image_size}; resize them or build it with image_size={size[0]}"
            )


class TimmEncoder(ImageEncoder):
    """A timm model without its classifier. ResNet, DenseNet, ConvNeXt, Swin, ViT and every family that gives features.

    `level` chooses the stage of a pyramid (negative counts from the end); None takes the deepest stage that leaves at
    least 4 x 4 patches, so a ResNet gives 4 x 4 at 64 pixels (stride 16) and 7 x 7 at 224 (stride 32). Later stages
    are cut off, not merely unused. `options` go to timm, for example `output_stride=8` (dilation) or `patch_size=8`.
    """

    def __init__(
        self, name: str, *, channels: int = 1, image_size: int, pretrained: bool = False, pooling: str = "average",
        level: int | None = None, **options,
    ):  # fmt: skip
        body = _create(name, channels=channels, image_size=image_size, pretrained=pretrained, **options)
        if not hasattr(body, "forward_intermediates") or not hasattr(body, "prune_intermediate_layers"):
            raise KitError(f"timm model {name!r} gives no intermediate features: choose a ResNet, DenseNet or ViT")
        tokens = hasattr(body, "num_prefix_tokens") and hasattr(body, "blocks")  # a ViT: one width, one grid
        strides = _strides(body, output_stride=options.get("output_stride"))
        index = _level(name, level, strides, image_size, tokens=tokens)
        body.prune_intermediate_layers([index], prune_norm=False, prune_head=True)
        if not tokens:  # convolutions run up to a fifth faster on a CPU when the channels of a pixel lie side by side
            body = body.to(memory_format=torch.channels_last)
        mean = deviation = None
        if pretrained:
            mean, deviation = _statistics(body, channels)
        with torch.no_grad():  # the grid and the width are read off, not computed from names
            was_training = body.training
            blank = torch.zeros(1, channels, image_size, image_size)
            last = body.eval().forward_intermediates(blank, indices=[index], intermediates_only=True, stop_early=True)
            body.train(was_training)
        width, grid = last[0].shape[1], tuple(last[0].shape[-2:])
        stride = strides[index]
        if tokens and image_size % stride:
            raise KitError(
                f"{name!r} cuts patches of {stride} pixels, which do not tile {image_size} x {image_size}: "
                f"use image_size={image_size // stride * stride or stride} or patch_size=..."
            )
        prefix = getattr(body, "num_prefix_tokens", 0) if tokens else 0
        super().__init__(
            width=width, channels=channels, image_size=image_size, grid=grid, pooling=pooling,
            has_cls=prefix > 0 and getattr(body, "cls_token", None) is not None,
            any_size=not body.pretrained_cfg.get("fixed_input_size", False), mean=mean, deviation=deviation,
        )  # fmt: skip
        self.body, self.index, self.tokens, self.prefix = body, index, tokens, prefix
        # Families without batch normalisation (ConvNeXt, Swin) leave their stages unnormalised; ViT normalises itself.
        normalised = tokens or any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in body.modules())
        self.norm = nn.Identity() if normalised else nn.LayerNorm(width)
        self.stride = stride

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        options = {"return_prefix_tokens": True} if self.prefix else {}
        last = self.body.forward_intermediates(
            images, indices=[self.index], norm=True, stop_early=True, intermediates_only=True, **options
        )[0]
        maps, cls = (last[0], last[1][:, 0]) if self.prefix else (last, None)
        return self._normalised(maps), cls

    def forward_levels(self, images: Tensor) -> list[Tensor]:
        levels = self.body.forward_intermediates(
            self.normalise(images), indices=list(range(self.index + 1)), norm=self.tokens, intermediates_only=True
        )
        return [*levels[:-1], self._normalised(levels[-1])]

    def _normalised(self, maps: Tensor) -> Tensor:
        return self.norm(maps.movedim(1, -1)).movedim(-1, 1)


def build_image_encoder(
    name: str, *, channels: int = 1, image_size: int, pretrained: bool = False, pooling: str = "average", **options
) -> ImageEncoder:
    """The image encoder called `name`: a timm name, "kit_resnet10", or "kit_vit" / "kit_vit_conv_stem" (`vit.py`).

    images (B, channels, H, W) float in [0, 1] -> ImageFeatures. pooling: "average", "attention" (a learned query) or
    "cls" (ViT only). `pretrained=True` reads weights from the local cache and never from the network.
    Raises KitError for an unknown name, an impossible pooling or size, or weights that are not cached.
    """
    if name in OWN:
        if pretrained:
            raise KitError(f"{name!r} has no pretrained weights of its own: build it and use `load_timm`")
        build = OWN[name]
    else:
        build = TimmEncoder
        options["pretrained"] = pretrained
    return build(name, channels=channels, image_size=image_size, pooling=pooling, **options)


def _kit_vit(name: str, **options) -> ImageEncoder:
    from .vit import VisionTransformerEncoder

    return VisionTransformerEncoder(stem="convolution" if name.endswith("conv_stem") else "patch", **options)


def _kit_resnet10(name: str, **options) -> ImageEncoder:
    """timm's ResNet-10-t made for small pictures: a stem half as wide, and 8 x 8 patches of 64 pixels, not 4 x 4.

    Its third stage keeps the resolution of the second (dilation), so that small signs can be located; the fourth is cut.
    """
    return TimmEncoder("resnet10t", stem_width=16, output_stride=8, level=3, **options)


OWN: dict[str, Callable[..., ImageEncoder]] = {
    "kit_resnet10": _kit_resnet10,
    "kit_vit": _kit_vit,
    "kit_vit_conv_stem": _kit_vit,
}


def _create(name: str, *, channels: int, image_size: int, pretrained: bool, **options) -> nn.Module:
    """The timm model, sized for these images; every failure is one line."""
    import timm

    base = name.split(".")[0]
    if not timm.is_model(base):
        near = get_close_matches(base, [*OWN, *timm.list_models()], n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise KitError(
            f"unknown image encoder {name!r}: {hint}any timm name works, for example resnet10t, densenet121, "
            f"convnext_atto, vit_tiny_patch16_224, swin_tiny_patch4_window7_224; or {', '.join(OWN)}"
        )
    config = timm.get_pretrained_cfg(base, allow_unregistered=True)
    if config is not None and config.fixed_input_size:
        options.setdefault("img_size", image_size)
        if base.startswith("swin"):
            options.setdefault("window_size", _window(image_size))
    if pretrained:
        options["pretrained_cfg_overlay"] = {"file": _cached_weights(name)}
    try:
        return timm.create_model(name, pretrained=pretrained, in_chans=channels, num_classes=0, **options)
    except (TypeError, AssertionError, ValueError, RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise KitError(f"timm cannot build {name!r} for {image_size} x {image_size} pixels: {reason}") from error


def _strides(body: nn.Module, *, output_stride: int | None) -> list[int]:
    """Pixels a cell of each level stands for, finest first."""
    info = body.feature_info
    strides = [entry["reduction"] for entry in (info.info if hasattr(info, "info") else info)]
    return [min(stride, output_stride or stride) for stride in strides]


def _level(name: str, level: int | None, strides: list[int], image_size: int, *, tokens: bool) -> int:
    """The index of the stage to read."""
    if level is None:
        if tokens:
            return len(strides) - 1
        fitting = [i for i, stride in enumerate(strides) if image_size / stride >= SMALLEST_GRID]
        return fitting[-1] if fitting else 0
    if not -len(strides) <= level < len(strides):
        raise KitError(
            f"level={level}: {name!r} has {len(strides)} levels of strides {strides}; "
            f"choose 0 to {len(strides) - 1} or a negative one"
        )
    return level % len(strides)


def _window(image_size: int) -> int:
    """The largest Swin window of at most 8 that cuts every stage's grid without padding (7 when there is none)."""
    grids = [image_size // stride for stride in (4, 8, 16, 32)]
    fitting = [w for w in range(8, 2, -1) if all(grid <= w or grid % w == 0 for grid in grids)]
    return fitting[0] if fitting else 7


def _statistics(body: nn.Module, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation the weights were trained with; averaged over colours when the channel count differs."""
    both = []
    for key, default in (("mean", MEAN), ("std", DEVIATION)):
        values = torch.tensor(body.pretrained_cfg.get(key) or (default,), dtype=torch.float32)
        both.append(values if len(values) == channels else values.mean().expand(channels))
    return both[0], both[1]


def _cached_weights(name: str) -> str:
    """Path of the safetensors file of a timm name in the local Hugging Face cache."""
    import timm
    from huggingface_hub import try_to_load_from_cache

    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    repository = getattr(config, "hf_hub_id", None)
    if not repository:
        raise KitError(f"timm has no pretrained weights for {name!r}: use pretrained=False or another name")
    repository = repository if not repository.endswith("/") else f"{repository}{config.architecture}.{config.tag}"
    path = try_to_load_from_cache(repository, "model.safetensors")
    if not isinstance(path, str):
        raise KitError(
            f"the pretrained weights of {name!r} are not in the local cache and the kit does not download: run "
            f"`hf download {repository} model.safetensors` once where there is a network, or use pretrained=False"
        )
    return path
