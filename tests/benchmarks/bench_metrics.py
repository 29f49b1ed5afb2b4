"""How much faster the metrics are than the loops they replace. `make bench` runs this; a plain test run does not."""

from __future__ import annotations

import time

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from medvlp_kit.downstream.classification import bootstrap_auroc
from medvlp_kit.downstream.intervals import resample_counts
from medvlp_kit.downstream.ranking import ranks


def seconds(function) -> float:
    """One run of the slow form."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def test_bootstrap_auroc_is_at_least_100_times_a_scikit_learn_loop(benchmark):
    studies, findings, resamples, few = 500, 14, 1000, 10
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(studies, findings))
    labels = (generator.random((studies, findings)) < 0.2).astype(float)
    drawn = [
        np.repeat(np.arange(studies), counts)
        for counts in resample_counts(studies, resamples=few, generator=np.random.default_rng(0)).astype(int).T
    ]

    def loop() -> np.ndarray:
        return np.array([[roc_auc_score(labels[d, c], scores[d, c]) for c in range(findings)] for d in drawn])

    loop()
    slow = seconds(loop) * resamples / few
    benchmark.pedantic(lambda: bootstrap_auroc(scores, labels, resamples=resamples, seed=0), rounds=5, warmup_rounds=1)
    fast = benchmark.stats.stats.min
    samples = bootstrap_auroc(scores, labels, resamples=few, seed=0).samples
    np.testing.assert_allclose(samples, loop(), atol=1e-12)
    benchmark.extra_info["ratio"] = round(slow / fast)
    print(
        f"\nbootstrap AUROC, {studies} studies x {findings} findings x {resamples} resamples: {fast:.3f} s, "
        f"scikit-learn loop {slow:.1f} s (from {few} resamples), ratio {slow / fast:.0f}x"
    )
    assert slow / fast >= 100


def test_retrieval_of_ten_thousand_is_at_least_5_times_a_loop_over_rows(benchmark):
    count = 10_000
    similarity = torch.randn(count, count, generator=torch.Generator().manual_seed(0))

    def loop() -> list[int]:
        return [int((row.argsort(descending=True) == i).nonzero()) for i, row in enumerate(similarity)]

    start = time.perf_counter()
    expected = loop()
    slow = time.perf_counter() - start
    groups = np.random.default_rng(0).integers(0, 7_000, count)
    grouped = seconds(lambda: ranks(similarity, groups=groups))
    found = benchmark.pedantic(lambda: ranks(similarity), rounds=10, warmup_rounds=1)
    fast = benchmark.stats.stats.min
    assert found.tolist() == expected
    benchmark.extra_info["ratio"] = round(slow / fast)
    print(
        f"\nretrieval, {count} x {count}: {fast:.2f} s, loop over rows {slow:.2f} s, ratio {slow / fast:.0f}x; "
        f"with groups of identical texts {grouped:.2f} s"
    )
    assert slow / fast >= 5
