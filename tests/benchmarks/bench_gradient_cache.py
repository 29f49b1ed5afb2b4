"""Memory of one training step by batch size, encoded in chunks and whole. `make bench`; a plain test run does not."""

from __future__ import annotations

import multiprocessing
import threading
import time
from dataclasses import replace

import psutil
import torch

from medvlp_kit.budget import budget
from medvlp_kit.model import ForwardPass
from medvlp_kit.objectives.contrastive import InfoNCE
from medvlp_kit.objectives.gradient_cache import chunked_output
from medvlp_kit.recipes import build, get
from medvlp_kit.study import Batch, Tokens

CHUNK = 64
SIZES = budget("laptop").but(image_model="kit_vit", image_size=32, text_width=64)
SMALL = replace(get("clip"), image_options={"width": 64, "layers": 2, "heads": 2})  # memory is the question, not time


def make_batch(count: int) -> Batch:
    ids = torch.randint(5, 2000, (count, 24))
    return Batch(
        tuple(range(count)), {"frontal": torch.rand(count, 1, 32, 32)}, {"report": Tokens(ids, torch.ones_like(ids) > 0)},
        ("",) * count, torch.zeros(count, 0),
    )  # fmt: skip


def step(model, batch: Batch, chunk: int | None) -> float:
    """Seconds of one forward and backward pass."""
    model.zero_grad()
    start = time.perf_counter()
    output = InfoNCE()(ForwardPass(model, batch)) if chunk is None else chunked_output(InfoNCE(), model, batch, chunk=chunk)
    output.loss.backward()
    return time.perf_counter() - start


def measure(count: int, chunk: int | None, answer) -> None:
    """In a process of its own, so that memory is what this step alone adds to model and images."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = build(SMALL, budget=SIZES).model.train()
    step(model, make_batch(8), None)  # libraries and their buffers
    batch, process, done, seen = make_batch(count), psutil.Process(), threading.Event(), []
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    seconds = step(model, batch, chunk)
    done.set()
    watcher.join()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    answer.put((seconds, (max(seen) - before) / 2**20, gradient.norm().item()))


def in_own_process(*arguments):
    spawn = multiprocessing.get_context("spawn")
    answer = spawn.Queue()
    process = spawn.Process(target=measure, args=(*arguments, answer))
    process.start()
    found = answer.get(timeout=900)
    process.join()
    return found


def test_memory_is_flat_in_the_batch_size(benchmark, monkeypatch):
    # the C library is told to give back what is freed, so that the peak is what lives and not what it once held
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    print("\ngradient cache, small ViT at 32 px and 24 words, one thread, forward and backward, memory beside model and images:")
    found = {}
    for count, chunk in [(256, CHUNK), (4096, CHUNK), (256, None), (1024, None), (1024, CHUNK)]:
        seconds, memory, _ = found[count, chunk] = in_own_process(count, chunk)
        form = "whole" if chunk is None else f"in chunks of {chunk}"
        print(f"  {count:>5} pairs {form:<16} {memory:>6.0f} MB, {count / seconds:>5.0f} pairs/s", flush=True)
    for count in (256, 1024):
        (slow, memory, one), (seconds, small, two) = found[count, None], found[count, CHUNK]
        assert abs(one - two) < 1e-3 * one  # the same gradient
        benchmark.extra_info[f"memory ratio, {count}"] = round(memory / small, 1)
        benchmark.extra_info[f"time ratio, {count}"] = round(seconds / slow, 2)
    few, many = found[256, CHUNK][1], found[4096, CHUNK][1]
    each = 1024 * (many - few) / (4096 - 256), 1024 * (found[1024, None][1] - found[256, None][1]) / (1024 - 256)
    print(f"  sixteen times the pairs take {many / few:.2f} times the memory in chunks; one more pair takes "
          f"{each[0]:.0f} kB in chunks, {each[1]:.0f} kB whole")  # fmt: skip
    assert many < 2 * few and each[0] < each[1] / 40
    model, batch = build(SMALL, budget=SIZES).model.train(), make_batch(128)
    benchmark.pedantic(lambda: step(model, batch, CHUNK), rounds=2, warmup_rounds=1)
