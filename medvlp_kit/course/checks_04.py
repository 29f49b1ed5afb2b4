"""Checks of lesson 04, image encoders: CNN."""

from __future__ import annotations

from .checking import close, exercise, expect, expect_close, expect_not


@exercise
def output_size(answer):
    """output_size(size, *, kernel, stride, padding, dilation) -> pixels of the convolved picture's side."""
    first = answer(8, kernel=3, stride=1, padding=0, dilation=1)
    expect(first is not None, "your function returns None: does it end with return?")
    expect_not(
        first,
        {
            "the last place is missing: a filter of 3 starts at pixels 0 to 5 of 8, which are 6 places, not 5": 5,
            "a filter of 3 does not fit at every one of 8 pixels: without padding the picture shrinks": 8,
        },
    )
    expect_close(first, 6, "a filter of 3 fits at 6 places along 8 pixels")
    expect_not(
        answer(8, kernel=3, stride=1, padding=1, dilation=1),
        {"padding adds pixels at both ends, so it counts twice": 7, "padding is not used": 6},
    )
    expect_close(answer(8, kernel=3, stride=1, padding=1, dilation=1), 8, "3 x 3 with padding 1 keeps the size")
    found = answer(9, kernel=2, stride=2, padding=0, dilation=1)
    expect_not(
        found,
        {
            "round down: the filter cannot stand half outside, the last pixel is simply not seen": 5,
            "a size is a whole number: use // and not /": 4.5,
            "the division comes before the 1 is added: (9 - 2) // 2 + 1": 3,
        },
    )
    expect_close(found, 4, "a filter of 2 with stride 2 fits 4 times along 9 pixels")
    expect(isinstance(found, int), f"a size is a whole number, yours is the {type(found).__name__} {found!r}: use //")
    expect_not(
        answer(16, kernel=3, stride=1, padding=0, dilation=2),
        {
            "dilation is not used: it spreads the filter, 3 taps with dilation 2 cover 5 pixels": 14,
            "3 taps with dilation 2 cover 5 pixels, not 6: there are gaps between taps, none behind the last": 11,
        },
    )
    for size, kernel, stride, padding, dilation in ((16, 3, 1, 0, 2), (224, 7, 2, 3, 1), (33, 3, 2, 1, 2), (5, 5, 3, 0, 1)):
        expect_close(
            answer(size, kernel=kernel, stride=stride, padding=padding, dilation=dilation),
            _convolved(size, kernel, stride, padding, dilation),
            f"wrong for size {size}, kernel {kernel}, stride {stride}, padding {padding}, dilation {dilation}: "
            "count the places where the spread filter fits",
        )


def _convolved(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """The side of what PyTorch returns."""
    import torch
    import torch.nn.functional as F

    options = {"stride": stride, "padding": padding, "dilation": dilation}
    return F.conv2d(torch.zeros(1, 1, size, size), torch.zeros(1, 1, kernel, kernel), **options).shape[-1]


@exercise
def seen_pixels(answer):
    """seen_pixels(layers, unit) -> (first, last) pixel that a unit can see; layers of (kernel, stride, padding)."""
    found = answer([(3, 1, 1)], 5)
    expect(found is not None, "your function returns None: does it end with return?")
    expect(hasattr(found, "__len__") and len(found) == 2, "return two numbers: the first and the last pixel seen")
    expect_not(
        found,
        {
            "both ends count: pixels 4 to 6 are three, the filter has no fourth": (4, 7),
            "padding is not used: with padding 1 the first filter begins at pixel -1": (5, 7),
        },
    )
    expect_close(found, (4, 6), "a 3 x 3 filter with padding 1 at place 5 sees pixels 4, 5 and 6")
    expect_close(answer([(2, 2, 0)], 3), (6, 7), "place 3 of a filter of 2 with stride 2 begins at pixel 3 * 2 = 6")
    layers, unit = [(3, 2, 1), (3, 1, 1)], 3
    found = answer(layers, unit)
    expect_not(
        found,
        {
            "the places of the first layer are 2 pixels apart, so the second filter spans more pixels than 3: begin at the "
            "last layer and go back to the pixels": (4, 8),
        },
    )
    expect_close(found, (3, 9), "place 3 sees places 2 to 4 of the layer before, whose filters see pixels 3 to 9")
    for layers, unit in (
        ([(3, 2, 1), (3, 1, 1), (3, 2, 1)], 4), ([(7, 2, 3), (3, 2, 1), (3, 1, 1)], 5), ([(4, 4, 0), (3, 1, 0)], 2),
    ):  # fmt: skip
        expect_close(answer(layers, unit), _lit(layers, unit), f"wrong for {layers} at place {unit}")
    edge = answer([(3, 1, 1)], 0)
    expect(
        close(edge, (-1, 1)),
        "do not cut at the border: the first filter really covers pixel -1, which is padding",
    )


def _lit(layers, unit: int, *, size: int = 64) -> tuple[int, int]:
    """Which pixels have a gradient, in one dimension, when all weights are one."""
    import torch
    import torch.nn.functional as F

    pixels = torch.zeros(1, 1, size, requires_grad=True)
    x = pixels
    for kernel, stride, padding in layers:
        x = F.conv1d(x, torch.ones(1, 1, kernel), stride=stride, padding=padding)
    x[0, 0, unit].backward()
    lit = pixels.grad[0, 0].nonzero()
    return int(lit.min()), int(lit.max())


@exercise
def convolution_cost(answer):
    """convolution_cost(size, *, channels, filters, kernel, bias) -> (parameters, multiply-adds), stride 1, size kept."""
    size, channels, filters, kernel = 10, 4, 5, 3
    found = answer(size, channels=channels, filters=filters, kernel=kernel, bias=True)
    expect(found is not None, "your function returns None: does it end with return?")
    expect(hasattr(found, "__len__") and len(found) == 2, "return two numbers: the parameters and the multiply-adds")
    parameters, work = found
    weights, places = filters * channels * kernel**2, size**2
    expect_not(
        parameters,
        {
            "the bias is missing: one number a filter": weights,
            "there is one bias a filter, not one a channel": weights + channels,
            "each filter reads all channels: a filter has kernel x kernel numbers for every one": filters * kernel**2 + filters,
            "a filter is square: kernel x kernel": filters * channels * kernel + filters,
            "weights are shared: the same filter is used at every place, so the size of the picture does not matter": weights
            * places
            + filters,
        },
    )
    truth_parameters, truth_work = _counted(size, channels, filters, kernel)
    expect_close(parameters, truth_parameters, "filters x channels x kernel x kernel weights, and one bias a filter")
    plain = answer(size, channels=channels, filters=filters, kernel=kernel, bias=False)
    expect_close(plain[0], weights, "with bias=False there is no bias to count")
    expect_not(
        work,
        {
            "parameters are read once, but used at every place: multiply by the places": weights,
            "you counted one row of places: the picture has size x size": weights * size,
            "you counted additions too: one multiply-add is one": 2 * weights * places,
            "adding the bias is no multiplication: leave it out": (weights + filters) * places,
            "the filter shrinks the picture only without padding: here the size is kept": weights * (size - kernel + 1) ** 2,
        },
    )
    expect_close(work, truth_work, "all weights are used once at each of size x size places")
    expect_close(plain[1], truth_work, "the bias is an addition: without it the multiply-adds are the same")


def _counted(size: int, channels: int, filters: int, kernel: int) -> tuple[int, float]:
    """What PyTorch counts: parameters with bias, and multiply-adds."""
    import torch
    from torch import nn
    from torch.utils.flop_counter import FlopCounterMode

    layer, counter = nn.Conv2d(channels, filters, kernel, padding=kernel // 2), FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        layer(torch.zeros(1, channels, size, size))
    return sum(p.numel() for p in layer.parameters()), counter.get_total_flops() / 2
