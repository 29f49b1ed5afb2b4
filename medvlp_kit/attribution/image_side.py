"""Which part of the picture makes the similarity: Grad-CAM, integrated gradients and occlusion, through captum.

Each takes images (B, C, H, W), their texts (and texts `against`, see `score`) and gives a signed map (B, H, W) on the
CPU: above zero speaks for the text. What a map of one image is does not depend on the others in its batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..downstream.encode import device_of
from ..encoders.features import ImageFeatures
from ..errors import KitError, unknown
from ..study import Tokens
from .scoring import ImageScore, explaining

BASELINES = ("mean", "black", "blurred")
AT_ONCE = 256  # images that captum may send through the model together


def baseline_images(images: Tensor, baseline: str | float | Tensor = "mean") -> Tensor:
    """The picture without information that attribution starts from, (B, C, H, W).

    "mean": each image's own mean, a flat grey; "black": zeros, the usual choice, to which what is dark in the image can
    never matter (a pneumothorax is dark); "blurred": the image without detail; a number; or images of your own.
    """
    if isinstance(baseline, Tensor):
        if baseline.shape[-3:] != images.shape[-3:]:
            raise KitError(f"a baseline {tuple(baseline.shape)} for images {tuple(images.shape)}: give one of their shape")
        return baseline.to(images).expand_as(images)
    if isinstance(baseline, (int, float)):
        return torch.full_like(images, float(baseline))
    if baseline == "mean":
        return images.mean((1, 2, 3), keepdim=True).expand_as(images)
    if baseline == "black":
        return torch.zeros_like(images)
    if baseline == "blurred":
        from torchvision.transforms.functional import gaussian_blur

        side = max(3, min(images.shape[-2:]) // 4 * 2 + 1)
        return gaussian_blur(images, [side, side])
    raise unknown("baseline", baseline, BASELINES)


def grad_cam(
    model: nn.Module, images: Tensor, text: Tokens | Tensor, *, against: Tokens | Tensor | None = None,
    layer: str | None = None, relu: bool = False,
) -> Tensor:  # fmt: skip
    """Grad-CAM (Selvaraju et al. 2017) on the similarity: (B, H, W), up-sampled bilinearly.

        weight_c = mean over places of d score / d A_c,   map = sum_c weight_c A_c

    A (B, C, h, w) are the patches the encoder pools (layer None), or the output of the module `layer`, either
    (B, C, h, w) or tokens (B, L, D) with the patches last. An encoder that pools its class token has no gradient at its
    last patches, so there None takes the output of the last but one block. relu=True is the paper's form; False keeps
    what speaks against the text.
    """
    from captum.attr import LayerAttribution, LayerGradCam

    with explaining(model):
        number = _Tapped(model, text, against=against)
        images = images.to(device_of(model))
        with _tap_at(number, layer):
            cells = LayerGradCam(number, number.tap).attribute(
                images, additional_forward_args=number.arguments(len(images)), relu_attributions=relu
            )  # (B, 1, h, w)
        size = tuple(images.shape[-2:])
        maps = LayerAttribution.interpolate(cells.detach(), size, interpolate_mode="bilinear")
        return maps[:, 0].float().cpu()


def integrated_gradients(
    model: nn.Module, images: Tensor, text: Tokens | Tensor, *, against: Tokens | Tensor | None = None,
    baseline: str | float | Tensor = "mean", steps: int = 32, cells: int | tuple[int, int] | None = None,
) -> Tensor:  # fmt: skip
    """Integrated gradients (Sundararajan et al. 2017) on the similarity: (B, H, W), summed over channels.

        map = (x - x0) * integral over a in [0, 1] of d score(x0 + a (x - x0)) / dx

    with x0 the baseline (see `baseline_images`), by a Gauss-Legendre rule of `steps` points. Complete: a map sums to
    score(x) - score(x0), up to the error of the rule. `cells` averages the map over a grid of h x w cells and
    up-samples it, for comparison with maps that are as coarse; the mean of the map stays (nearly) the same.
    """
    from captum.attr import IntegratedGradients

    with explaining(model):
        number = ImageScore(model, text, against=against)
        images = images.detach().clone().to(device_of(model))
        maps = IntegratedGradients(number).attribute(
            images, baselines=baseline_images(images, baseline), n_steps=steps,
            additional_forward_args=number.arguments(len(images)), internal_batch_size=max(AT_ONCE, len(images)),
        ).sum(1)  # fmt: skip  (B, H, W)
    maps = maps.detach().cpu()
    return (maps if cells is None else to_cells(maps, cells)).float()


def occlusion(
    model: nn.Module, images: Tensor, text: Tokens | Tensor, *, against: Tokens | Tensor | None = None,
    window: int | None = None, stride: int | None = None, baseline: str | float | Tensor = "mean",
) -> Tensor:  # fmt: skip
    """Occlusion (Zeiler and Fergus 2014): how much the score falls when a square is covered, (B, H, W).

    A square of `window` pixels (a quarter of the side) moves by `stride` (an eighth) and shows the baseline; a pixel
    gets the mean fall over the squares that cover it. (H / stride)² forward passes, no gradient.
    """
    from captum.attr import Occlusion

    channels, height, width = images.shape[1:]
    window = window or max(1, min(height, width) // 4)
    stride = stride or max(1, window // 2)
    if not 0 < stride <= window <= min(height, width):
        raise KitError(
            f"window={window}, stride={stride} on {height} x {width} pixels: take 0 < stride <= window <= side, so that "
            "every pixel is covered at least once"
        )
    with explaining(model), torch.no_grad():
        number = ImageScore(model, text, against=against)
        images = images.detach().to(device_of(model))
        maps = Occlusion(number).attribute(
            images, sliding_window_shapes=(channels, window, window), strides=(channels, stride, stride),
            baselines=baseline_images(images, baseline), additional_forward_args=number.arguments(len(images)),
            perturbations_per_eval=max(1, AT_ONCE // len(images)),
        )  # fmt: skip  (B, C, H, W), the same in every channel
    return maps[:, 0].float().cpu()


def to_cells(maps: Tensor, cells: int | tuple[int, int]) -> Tensor:
    """Maps (B, H, W) averaged over a grid of h x w cells, and up-sampled bilinearly to their own size."""
    grid = (cells, cells) if isinstance(cells, int) else tuple(cells)
    coarse = F.adaptive_avg_pool2d(maps[:, None], grid)  # (B, 1, h, w)
    return F.interpolate(coarse, size=maps.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


class _Tapped(ImageScore):
    """An `ImageScore` whose patches pass through `tap` as a map (B, C, h, w), where captum can read it.

    Without `elsewhere` these are the patches that the encoder pools; else a hook on another module leads through it.
    """

    def __init__(self, model, text, *, against=None):
        super().__init__(model, text, against=against)
        self.tap, self.elsewhere = nn.Identity(), False

    def features(self, images: Tensor) -> ImageFeatures:
        image = self.model.encode_image(images)
        if self.elsewhere:
            return image
        patches = _through(self.tap, image.patches, image.grid)
        return self.model.image_encoder.collect(patches, None, grid=image.grid)


def _through(tap: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens (B, L, D), the last h * w of them patches, with the patches led through `tap` as (B, D, h, w)."""
    first = tokens.shape[1] - grid[0] * grid[1]
    patches = tap(tokens[:, first:].transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)
    return torch.cat([tokens[:, :first], patches], dim=1) if first else patches


@contextmanager
def _tap_at(number: _Tapped, layer: str | None) -> Iterator[None]:
    """Lead the output of `layer` through the tap while the block lasts."""
    encoder = number.model.image_encoder
    if layer is None and encoder.pooling != "cls":
        yield
        return
    name = layer if layer is not None else _last_but_one_block(number.model)
    modules = dict(number.model.named_modules())
    if name not in modules:
        raise unknown("layer", name, [found for found in modules if found.startswith("image_encoder.")])

    def lead(module, arguments, output):
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            raise KitError(f"layer {name!r} gives no map (B, C, h, w) and no tokens (B, L, D): choose another layer")
        return number.tap(output) if output.ndim == 4 else _through(number.tap, output, encoder.grid)

    handle = modules[name].register_forward_hook(lead)
    number.elsewhere = True
    try:
        yield
    finally:
        handle.remove()


def _last_but_one_block(model: nn.Module) -> str:
    lists = [n for n, m in model.named_modules() if n.startswith("image_encoder.") and n.endswith("blocks")]
    if not lists or len(model.get_submodule(lists[0])) < 2:
        raise KitError("Grad-CAM of a class token needs an encoder with at least two blocks: name a layer=...")
    return f"{lists[0]}.{len(model.get_submodule(lists[0])) - 2}"
