"""What leaving three quarters of the patches out saves. `make bench` runs this; a plain test run does not."""

from __future__ import annotations

import time

import torch

from medvlp_kit.encoders.hidden import encode_painted, encode_visible
from medvlp_kit.encoders.image import build_image_encoder
from medvlp_kit.objectives.masked_image import random_masking


def test_an_encoder_that_sees_a_quarter_is_at_least_2_2_times_faster(benchmark):
    torch.manual_seed(0)
    encoder = build_image_encoder("kit_vit", image_size=112, patch=8, width=192, layers=6, heads=3).train()
    images = torch.rand(16, 1, 112, 112)
    cells = torch.arange(196).expand(16, -1)[..., None]
    places, mask, _ = random_masking(cells, ratio=0.75, generator=torch.Generator().manual_seed(0))

    def step(encode) -> None:
        encoder.zero_grad()
        encode().patches.square().mean().backward()

    def quarter() -> None:
        step(lambda: encode_visible(encoder, images, places[..., 0]))

    def fastest(function, rounds: int = 5) -> float:
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        return min(times)

    quarter()
    full = fastest(lambda: step(lambda: encoder(images)))
    token = torch.zeros(encoder.width)
    painted = fastest(lambda: step(lambda: encode_painted(encoder, images, mask, token)))
    benchmark.pedantic(quarter, rounds=7, warmup_rounds=1)
    seen = benchmark.stats.stats.min
    benchmark.extra_info["ratio"] = round(full / seen, 1)
    print(
        f"\nMAE encoder, 16 images of 196 patches, width 192, 6 layers, forward and backward: a quarter of the patches "
        f"{1e3 * seen:.0f} ms, all of them {1e3 * full:.0f} ms, ratio {full / seen:.1f}x; SimMIM's pass {1e3 * painted:.0f} ms"
    )
    assert full / seen >= 2.2
