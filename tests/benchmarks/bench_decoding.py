"""What the key-value cache saves in writing reports. `make bench` runs this; a plain test run does not.

The published R2Gen decoder, and what was built on it, reads the whole report written so far at every word.
"""

from __future__ import annotations

import time

import torch

from medvlp_kit.encoders.features import ImageFeatures
from medvlp_kit.objectives.captioning import CaptionDecoder
from medvlp_kit.text import CLS


def test_writing_with_the_cache_is_at_least_6_times_faster(benchmark):
    torch.manual_seed(0)
    batch, words, grid = 16, 60, (7, 7)
    decoder = CaptionDecoder(image_width=256, vocabulary_size=2000, width=256, layers=3, heads=4, length=words + 1).eval()
    patches = torch.randn(batch, grid[0] * grid[1], 256)
    image = ImageFeatures(patches.mean(dim=1), patches, grid)

    # no report may end early, so that both forms write the same number of words
    options = dict(new_tokens=words, suppress_tokens=list(range(CLS + 2)))
    start = time.perf_counter()
    expected = decoder.generate(image, use_cache=False, **options)
    slow = time.perf_counter() - start
    written = benchmark.pedantic(lambda: decoder.generate(image, **options), rounds=3, warmup_rounds=1)
    fast = benchmark.stats.stats.min
    agree = (written == expected).float().mean()
    benchmark.extra_info["ratio"] = round(slow / fast, 1)
    print(
        f"\ndecoding {words} words for {batch} images, width 256, 3 layers: with cache {fast:.2f} s, without "
        f"{slow:.2f} s, ratio {slow / fast:.1f}x; the same words: {100 * agree:.1f} %"
    )
    assert agree == 1 and slow / fast >= 6
