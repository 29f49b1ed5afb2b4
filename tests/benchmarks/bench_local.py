"""The local loss against its published form: a loop over captions that copies every caption B times. `make bench`.

What can be won is bounded by the multiplications that both need. In units of B * B * T * N * D, the published form does
six (scores and contexts, each forward and twice backward), ours three and 2 N / D: the Gram matrix of the regions stands
in for the contexts. So a processor that multiplies the published form at its peak would see 1.3 to 1.5 times; whatever is
above that was copying, softmax over copies and memory. The bound is printed beside the ratio.
"""

from __future__ import annotations

import multiprocessing
import threading
import time

import psutil
import pytest
import torch
import torch.nn.functional as F

from medvlp_kit.objectives.local import word_region_loss


def published(images, texts):
    """The formula as it is commonly published: images (B, D, h, w), texts (B, D, T), one caption at a time.

    Each caption is repeated for all images, the image maps are transposed for each caption, and every context is built.
    """
    count, width = images.shape[:2]
    maps, similarities = images.flatten(2), []  # (B, D, N)
    for text in texts:
        length, regions = text.shape[1], maps.shape[2]
        repeated = text[None].repeat(count, 1, 1)  # (B, D, T)
        scores = maps.transpose(1, 2).contiguous() @ repeated  # (B, N, T)
        scores = scores.view(count * regions, length).softmax(dim=1).view(count, regions, length)
        attention = 4.0 * scores.transpose(1, 2).contiguous().view(count * length, regions)
        attention = attention.softmax(dim=1).view(count, length, regions)
        contexts = maps @ attention.transpose(1, 2).contiguous()  # (B, D, T)
        one = repeated.transpose(1, 2).contiguous().view(-1, width)
        two = contexts.transpose(1, 2).contiguous().view(-1, width)
        cosine = (one * two).sum(dim=1) / (one.norm(dim=1) * two.norm(dim=1)).clamp(min=1e-8)
        similarities.append((5.0 * cosine.view(count, length)).exp().sum(dim=1).log())
    logits, target = 10.0 * torch.stack(similarities, dim=1), torch.arange(count)
    return F.cross_entropy(logits, target), F.cross_entropy(logits.T, target)


def inputs(form: str, batch: int, side: int, width: int, length: int):
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(batch, side * side, width, generator=generator) / width**0.25
    words = torch.randn(batch, length, width, generator=generator) / width**0.25
    if form == "published":
        patches = patches.transpose(1, 2).contiguous().view(batch, width, side, side)
        words = words.transpose(1, 2).contiguous()
    return patches.requires_grad_(), words.requires_grad_()


def step(form: str, patches, words) -> tuple[float, float]:
    """Seconds of one forward and backward pass: on the clock, and of processors (which a busy machine changes less)."""
    patches.grad = words.grad = None
    start, used = time.perf_counter(), time.process_time()
    if form == "published":
        losses = published(patches, words)
    else:
        mask = torch.ones(words.shape[:2], dtype=torch.bool)
        losses = word_region_loss(patches, words, mask, keep={"kept": True, "recomputed": False}[form])
    sum(losses).backward()
    return time.perf_counter() - start, time.process_time() - used


def measure(form: str, shape: tuple[int, ...], threads: int, rounds: int, answer) -> None:
    """In a process of its own, so that memory is what this form alone adds."""
    torch.set_num_threads(threads)
    step(form, *inputs(form, 2, 2, 4, 3))  # libraries and their buffers
    patches, words = inputs(form, *shape)
    process, done, seen = psutil.Process(), threading.Event(), []
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.001):
            seen.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    step(form, patches, words)
    done.set()
    watcher.join()
    memory = (max(seen) - before) / 2**20
    times = [step(form, patches, words) for _ in range(rounds)]
    gradient = patches.grad.flatten(2).transpose(1, 2) if form == "published" else patches.grad
    answer.put((*map(min, zip(*times)), memory, gradient[0, :3, :4].tolist()))


def in_own_process(*arguments):
    spawn = multiprocessing.get_context("spawn")
    answer = spawn.Queue()
    process = spawn.Process(target=measure, args=(*arguments, answer))
    process.start()
    found = answer.get(timeout=900)
    process.join()
    return found


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(16, 14, 256, 32), (48, 19, 768, 25)], ids=str)
def test_local_loss_against_the_published_loop(benchmark, shape, threads):
    rounds = 7 if shape[0] == 16 else 2
    slow, slow_used, slow_memory, expected = in_own_process("published", shape, threads, rounds)
    lines = []
    for form in ("kept", "recomputed"):
        seconds, used, memory, found = in_own_process(form, shape, threads, rounds)
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-3, atol=1e-5)
        assert seconds < slow and memory < slow_memory
        benchmark.extra_info[f"ratio, {form}"] = round(slow / seconds, 1)
        lines.append(
            f"{form} {seconds:.3f} s, ratio {slow / seconds:.1f}x ({slow_used / used:.1f}x in processor time), {memory:.0f} MB"
        )
    regions, width = shape[1] ** 2, shape[2]
    print(
        f"\nlocal loss {shape} (B, side, D, T), {threads} threads, forward and backward; multiplications saved: "
        f"{6 / (3 + 2 * regions / width):.2f}x; published {slow:.3f} s, "
        f"{slow_memory:.0f} MB; {'; '.join(lines)}"
    )
    patches, words = inputs("kept", *shape)
    benchmark.pedantic(lambda: step("kept", patches, words), rounds=2, warmup_rounds=1)
