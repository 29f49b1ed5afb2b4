"""How fast are phantoms made? `make bench` prints it; the aim is 2,000 frontal images/s at 128 px on two cores."""

from __future__ import annotations

import pytest

from medvlp_kit.phantoms import World, chest
from medvlp_kit.phantoms.sampling import scene

COUNT = 512


def test_scenes(benchmark):
    world = World()
    benchmark(lambda: [scene(world, 0, index) for index in range(COUNT)])
    each = benchmark.stats.stats.min / COUNT
    benchmark.extra_info["microseconds per scene"] = round(each * 1e6, 1)
    print(f"\nscenes: {each * 1e6:.0f} us each")


@pytest.mark.parametrize("view", chest.VIEWS)
@pytest.mark.parametrize("size", [64, 128, 224])
def test_images(benchmark, size, view):
    scenes = [scene(World(), 0, index) for index in range(COUNT)]
    chest.render(scenes[:8], size=size, view=view)  # draws the banks
    benchmark.pedantic(lambda: chest.render(scenes, size=size, view=view), rounds=5, warmup_rounds=1)
    rate = COUNT / benchmark.stats.stats.min
    benchmark.extra_info["images per second"] = round(rate)
    print(f"\n{view} {size} px: {rate:,.0f} images/s")
