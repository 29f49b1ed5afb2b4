"""AUROC, average precision, F1 and MCC with their bootstraps; thresholds; results."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, matthews_corrcoef, roc_auc_score
from torchmetrics.functional.classification import (
    binary_matthews_corrcoef,
    multilabel_auroc,
    multilabel_average_precision,
    multilabel_f1_score,
)

from medvlp_kit.downstream.intervals import resample_counts
from medvlp_kit.downstream.multilabel import (
    METRICS,
    best_thresholds,
    bootstrap_metric,
    metric_table,
    multilabel,
    weighted_average_precision,
)
from medvlp_kit.errors import KitError


def by_scikit_learn(metric, scores, labels, threshold):
    """The slow form: one call of scikit-learn on the known cases of one column; NaN where the kit says undefined."""
    known = ~np.isnan(labels)
    scores, labels = scores[known], labels[known].astype(int)
    if metric == "AUROC":
        return roc_auc_score(labels, scores) if len(set(labels)) == 2 else np.nan
    if metric == "AP":
        return average_precision_score(labels, scores) if labels.any() else np.nan
    called = (scores >= threshold).astype(int)
    if metric == "F1":
        return f1_score(labels, called, zero_division=np.nan) if len(labels) else np.nan
    return matthews_corrcoef(labels, called) if len(set(labels)) == 2 else np.nan


@pytest.mark.parametrize("metric", METRICS)
@given(seed=st.integers(0, 10_000), count=st.integers(3, 25))
@settings(max_examples=12, deadline=None)
def test_every_resample_equals_scikit_learn_with_ties_unknown_labels_and_one_class(metric, seed, count):
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 5, (count, 3)).astype(float)  # few values, so that ties are the rule
    labels = generator.choice([0, 1, np.nan], (count, 3), p=[0.65, 0.25, 0.1])  # so that one-class resamples occur
    thresholds = np.array([1.0, 2.5, 9.0])  # the last calls nothing present
    found = bootstrap_metric(scores, labels, metric=metric, thresholds=thresholds, resamples=15, seed=seed)
    counts = resample_counts(count, resamples=15, generator=np.random.default_rng(seed)).astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for r in range(15):
            drawn = np.repeat(np.arange(count), counts[:, r])
            slow = [by_scikit_learn(metric, scores[drawn, c], labels[drawn, c], thresholds[c]) for c in range(3)]
            np.testing.assert_allclose(found.samples[r], slow, atol=1e-12)
        slow = [by_scikit_learn(metric, scores[:, c], labels[:, c], thresholds[c]) for c in range(3)]
    np.testing.assert_allclose(found.value, slow, atol=1e-12)
    assert (found.undefined == np.isnan(found.samples).sum(0)).all()


def test_values_equal_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.rand(60, 4, generator=generator), (torch.rand(60, 4, generator=generator) < 0.3).long()
    for metric, theirs in (
        ("AUROC", multilabel_auroc(scores, labels, num_labels=4, average="none")),
        ("AP", multilabel_average_precision(scores, labels, num_labels=4, average="none")),
        ("F1", multilabel_f1_score(scores, labels, num_labels=4, average="none", threshold=0.4)),
    ):
        mine = bootstrap_metric(scores.numpy(), labels.numpy(), metric=metric, thresholds=0.4, resamples=2, seed=0)
        np.testing.assert_allclose(mine.value, theirs, atol=1e-6)
        np.testing.assert_allclose(mine.macro.value, theirs.mean(), atol=1e-6)
    single = bootstrap_metric(scores[:, 0].numpy(), labels[:, 0].numpy(), metric="MCC", thresholds=0.4, resamples=2)
    theirs = binary_matthews_corrcoef(scores[:, 0], labels[:, 0], threshold=0.4)
    np.testing.assert_allclose(single.value, theirs, atol=1e-6)


def test_average_precision_of_a_useless_score_is_the_prevalence_whatever_the_order_of_the_cases():
    labels = np.array([1.0, 0, 0, 0])
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):  # ties must not profit from the positive standing first
        value = weighted_average_precision(np.zeros(4), labels[order], np.ones((4, 1)))
        assert value == pytest.approx(0.25)
    assert np.isnan(weighted_average_precision(np.zeros(2), np.zeros(2), np.ones((2, 1)))[0])
    assert np.isnan(weighted_average_precision(np.zeros(2), np.full(2, np.nan), np.ones((2, 1)))[0])


@pytest.mark.parametrize("metric", ["F1", "MCC"])
def test_the_threshold_is_the_best_of_all(metric):
    generator = np.random.default_rng(1)
    for _ in range(20):
        scores, labels = generator.integers(0, 8, 30).astype(float), generator.integers(0, 2, 30).astype(float)
        if len(set(labels)) < 2:
            continue
        chosen = best_thresholds(scores, labels, metric=metric)
        value = by_scikit_learn(metric, scores, labels, chosen)
        every = {t: by_scikit_learn(metric, scores, labels, t) for t in sorted(set(scores))}
        assert value == pytest.approx(max(every.values()))
        assert chosen == max(t for t, v in every.items() if v == pytest.approx(value))
    both = best_thresholds(np.stack([scores, -scores], 1), np.stack([labels, labels], 1), metric=metric)
    assert both.shape == (2,) and both[0] == chosen


def test_the_intervals_do_not_depend_on_the_order_of_metrics_and_share_their_resamples():
    generator = np.random.default_rng(0)
    scores, labels = generator.normal(size=(50, 2)), (generator.random((50, 2)) < 0.4).astype(float)
    table = metric_table(scores, labels, ["a", "b"], thresholds=np.zeros(2), resamples=40, seed=3)
    alone = bootstrap_metric(scores, labels, metric="MCC", thresholds=0.0, resamples=40, seed=3)
    np.testing.assert_array_equal(table["MCC low"], [*alone.low, alone.macro.low])
    np.testing.assert_allclose(table.loc["macro", "prevalence"], labels.mean())
    assert list(metric_table(scores, labels, ["a", "b"], resamples=5).columns)[:3] == ["AUROC", "AUROC low", "AUROC high"]


def test_a_result_carries_its_rule_its_controls_and_the_other_metrics():
    generator = np.random.default_rng(0)
    labels = (generator.random((80, 2)) < 0.4).astype(float)
    scores, noise = labels + 0.5 * generator.normal(size=labels.shape), generator.normal(size=labels.shape)
    result = multilabel(
        scores, labels, ["a", "b"], task="probe", controls={"noise": noise}, also={"oracle": labels}, rule="drawn",
        split="test", thresholds=best_thresholds(scores, labels), resamples=100,
    )  # fmt: skip
    assert result.passed and result.control.name == "noise" and result.rule.startswith("drawn; ")
    assert [e.name for e in result.also] == ["macro-AP", "macro-F1", "macro-MCC", "oracle"]
    assert result.also[-1].value == 1.0
    worse = multilabel(noise, labels, ["a", "b"], task="probe", controls={"labels": labels}, rule="r", split="test")
    assert not worse.passed and "Worse than the control" in worse.conclusion


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s, y: bootstrap_metric(s, y, metric="auc"), "metric"),
        (lambda s, y: bootstrap_metric(s, y, metric="F1"), "needs thresholds: choose them on the validation split"),
        (lambda s, y: best_thresholds(s, y, metric="AUROC"), "metric that needs a threshold"),
        (lambda s, y: best_thresholds(s, np.ones_like(y)), "larger validation split"),
        (lambda s, y: metric_table(s, y, ["a"]), "one name a column"),
        (lambda s, y: bootstrap_metric(s[:-1], y, metric="AP"), "give both as"),
    ],
)
def test_faults_are_one_line(call, words):
    with pytest.raises(KitError, match=words) as caught:
        call(np.zeros((4, 2)), np.array([[0.0, 1]] * 4))
    assert "\n" not in str(caught.value)
