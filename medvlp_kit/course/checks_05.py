"""Checks of lesson 05, image encoders: ViT."""

from __future__ import annotations

from .checking import exercise, expect, expect_close, expect_not, expect_shape


@exercise
def token_count(answer):
    """token_count(height, width, patch) -> how many tokens a ViT with one class token reads."""
    expect(
        answer(64, 64, 8) is not None,
        "your function returns None: does it end with return?",
    )
    expect_not(
        answer(64, 64, 8),
        {
            "you counted one row of patches: a 64-pixel image has 8 x 8 of them": 9,
            "you counted one row of patches, and no class token": 8,
            "one token is missing: the class token is read beside the patches": 64,
            "you counted pixels: a token is a whole patch": 64 * 64 + 1,
            "you counted pixels, and no class token: a token is a whole patch": 64 * 64,
        },
    )
    expect_close(answer(64, 64, 8), 65, "64 x 64 pixels in patches of 8 are 8 x 8 patches and the class token: 65")
    expect_not(
        answer(96, 32, 16),
        {"you took the height for both sides: this image is 96 x 32": 37, "you took the width for both sides": 5},
    )
    expect_close(answer(96, 32, 16), 13, "96 x 32 pixels in patches of 16 are 6 x 2 patches and the class token: 13")
    expect_close(answer(224, 224, 14), 257, "224 x 224 pixels in patches of 14 are 16 x 16 patches and one: 257")
    try:
        answer(60, 64, 16)
    except ValueError:  # KitError is one
        return
    expect(False, "60 pixels are not a multiple of 16: raise a ValueError, or the last rows vanish without a word")


@exercise
def unpatchify(answer):
    """unpatchify(patches (B, h * w, C * p * p), patch=p, grid=(h, w), channels=C) -> images (B, C, h * p, w * p)."""
    import torch
    import torch.nn.functional as F

    patch, (height, width), channels = 4, (2, 3), 2
    patches = torch.arange(2.0 * 6 * 32).view(2, 6, 32)  # (B, N, C * p * p)
    found = answer(patches, patch=patch, grid=(height, width), channels=channels)
    expect_shape(found, (2, channels, height * patch, width * patch), name="the image")
    # The truth by another way: fold adds every patch to its place, and the patches do not overlap.
    size = (height * patch, width * patch)
    truth = F.fold(patches.transpose(1, 2), output_size=size, kernel_size=patch, stride=patch)
    turned = F.fold(
        patches.view(2, 6, channels, patch, patch).transpose(-1, -2).flatten(2).transpose(1, 2),
        output_size=size, kernel_size=patch, stride=patch,
    )  # fmt: skip
    columns = patches.view(2, width, height, 32).transpose(1, 2).reshape(2, 6, 32)
    columns = F.fold(columns.transpose(1, 2), output_size=size, kernel_size=patch, stride=patch)
    last = patches.view(2, 6, patch, patch, channels).movedim(-1, 2).flatten(2)
    last = F.fold(last.transpose(1, 2), output_size=size, kernel_size=patch, stride=patch)
    expect_not(
        found,
        {
            "you only reshaped: a patch's pixels are then strung along one row; permute the axes first": patches.view(
                truth.shape
            ),
            "your patches are laid out column by column: patch 1 is to the right of patch 0, not below it": columns,
            "each patch is mirrored along its diagonal: its pixels go row by row": turned,
            "you read the channels as the last axis of a patch: here they come first, as in a convolution's weights": last,
        },
    )
    expect_close(found, truth, "the pixels are not where they were: cut an image with patchify, and put it together")


@exercise
def block_cost(answer):
    """block_cost(tokens, width) -> (multiply-adds of the linear layers, of attention) of one block, ratio 4."""
    tokens, width = 50, 24
    found = answer(tokens, width)
    expect(
        isinstance(found, (tuple, list)) and len(found) == 2,
        "return two numbers: the multiply-adds of the linear layers and those of attention",
    )
    linear, attention = found
    truth_linear, truth_attention = _counted(tokens, width, heads=3)
    square, pairs = tokens * width**2, tokens**2 * width
    expect_not(
        linear,
        {
            "one of four projections is missing: query, key, value and the output": 11 * square,
            "the feed-forward part is missing: it widens to 4 x the width and returns": 4 * square,
            "8 x tokens x width² is one of two layers of the feed-forward part, or attention's projections left out": 8
            * square,
            "you counted one token: every token passes through the linear layers": 12 * width**2,
            "you counted additions too: one multiply-add is one": 24 * square,
        },
    )
    expect_close(linear, truth_linear, "4 projections of width x width and 2 layers of width x 4 width, for each token")
    expect_not(
        attention,
        {
            "you counted the scores only: mixing the values costs the same again": pairs,
            "you counted the mixing of values and the scores for each head at full width: heads share the width": 6
            * pairs,
            "you took tokens x width: every token is compared with every token": 2 * tokens * width,
            "you swapped the powers: attention grows with the square of the tokens, not of the width": 2 * square,
            "you counted additions too: one multiply-add is one": 4 * pairs,
        },
    )
    expect_close(attention, truth_attention, "the scores cost tokens x tokens x width, and mixing the values as much")


def _counted(tokens: int, width: int, *, heads: int) -> tuple[float, float]:
    """What PyTorch counts in the kit's block: multiply-adds of the linear layers, and all others."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from ..encoders.layers import Block

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        Block(width, heads)(torch.zeros(1, tokens, width))
    flops = counter.get_flop_counts()["Global"]
    linear = sum(count for operation, count in flops.items() if "addmm" in str(operation))
    return linear / 2, (counter.get_total_flops() - linear) / 2
