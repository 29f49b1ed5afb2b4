"""Reliability curves, calibration errors, Platt's scaling, and subgroup tables."""

import numpy as np
import pytest
import torch
from planted import FINDINGS, Planted
from sklearn.calibration import calibration_curve
from torchmetrics.functional.classification import binary_calibration_error

from medvlp_kit.downstream.calibration import calibration_error, fit_platt, reliability_curve
from medvlp_kit.downstream.classification import auroc
from medvlp_kit.downstream.subgroups import attributes, projections, rarity, subgroups
from medvlp_kit.errors import KitError
from medvlp_kit.phantoms import Phantoms


def drawn(count=400, seed=0):
    """Probabilities and labels that are drawn from them: perfectly calibrated."""
    generator = np.random.default_rng(seed)
    said = generator.random(count)
    return said, (generator.random(count) < said).astype(float)


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
def test_the_curve_equals_scikit_learn(strategy):
    said, seen = drawn()
    for bins in (1, 5, 10, 37):
        found = reliability_curve(said, seen, bins=bins, strategy=strategy)
        present, mean = calibration_curve(seen, said, n_bins=bins, strategy=strategy)
        np.testing.assert_allclose(found["present"], present)
        np.testing.assert_allclose(found["said"], mean)
        assert found["cases"].sum() == len(said)


def test_the_error_equals_torchmetrics_and_pools_the_known_cases_of_all_findings():
    said, seen = drawn()
    theirs = binary_calibration_error(torch.tensor(said), torch.tensor(seen).long(), n_bins=10, norm="l1")
    assert calibration_error(said, seen, resamples=2).value == pytest.approx(theirs.item(), abs=1e-6)
    folded_labels = seen.reshape(-1, 4).copy()
    folded = calibration_error(said.reshape(-1, 4), folded_labels, resamples=2)
    assert folded.value == pytest.approx(theirs.item(), abs=1e-6)
    folded_labels[3, 2] = np.nan
    known = np.ones(len(said), dtype=bool)
    known[3 * 4 + 2] = False
    without = calibration_error(said[known], seen[known], resamples=2)
    assert calibration_error(said.reshape(-1, 4), folded_labels, resamples=2).value == pytest.approx(without.value)


def test_the_bootstrap_of_the_error_equals_recomputing_it():
    from medvlp_kit.downstream.intervals import resample_counts

    said, seen = drawn(60)
    found = calibration_error(said, seen, bins=5, resamples=8, seed=2)
    counts = resample_counts(60, resamples=8, generator=np.random.default_rng(2)).astype(int)
    for r in range(8):
        rows = np.repeat(np.arange(60), counts[:, r])
        assert found.samples[r] == pytest.approx(calibration_error(said[rows], seen[rows], bins=5, resamples=1).value)


def test_overconfidence_is_seen_and_platt_mends_it_without_moving_the_ranking():
    said, seen = drawn(4000)
    logit = np.log(said / (1 - said))
    bold = 1 / (1 + np.exp(-4 * logit))
    assert calibration_error(said, seen, resamples=2).value < 0.03
    assert calibration_error(bold, seen, resamples=2).value > 0.1
    scaling = fit_platt(4 * logit, seen)
    assert scaling.slope == pytest.approx(0.25, abs=0.03) and scaling.intercept == pytest.approx(0, abs=0.1)
    mended = scaling(4 * logit)
    assert calibration_error(mended, seen, resamples=2).value < 0.03
    assert auroc(mended, seen) == auroc(bold, seen)
    two = fit_platt(np.stack([logit, logit / 100], 1), np.stack([seen, seen], 1))  # cosines are small numbers
    assert two.slope.shape == (2,) and two.slope[1] == pytest.approx(100 * two.slope[0], rel=1e-3)


def test_a_constant_probability_is_one_bin():
    for strategy in ("uniform", "quantile"):
        found = reliability_curve(np.full(8, 0.5), np.arange(8) % 4 == 0, strategy=strategy)
        assert found.to_dict("list") == {"said": [0.5], "present": [0.25], "cases": [8]}
    assert calibration_error(np.full(8, 0.5), np.arange(8) % 4 == 0, strategy="quantile", resamples=2).value == 0.25


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: reliability_curve(np.array([-0.1, 0.5]), np.array([0, 1])), "numbers from 0 to 1"),
        (lambda: reliability_curve(np.array([0.1]), np.array([np.nan])), "no label is known"),
        (lambda: reliability_curve(*drawn(9), strategy="equal"), "strategy of bins"),
        (lambda: reliability_curve(*drawn(9), bins=0), "at least one"),
        (lambda: fit_platt(np.arange(4.0), np.zeros(4)), "larger validation split"),
        (lambda: subgroups(*np.zeros((2, 4, 2)), ["a"]), "one name a column"),
        (lambda: subgroups(*np.zeros((2, 4, 1)), ["a"], studies={"view": ["PA"]}), "one label a study"),
        (lambda: subgroups(*np.zeros((2, 4, 1)), ["a"], positives={"side": ["left"] * 4}), "a study and finding"),
    ],
)
def test_faults_are_one_line(call, words):
    with pytest.raises(KitError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


# subgroups


def test_subgroups_cut_studies_or_positives_as_they_say():
    generator = np.random.default_rng(0)
    labels = (generator.random((300, 3)) < (0.1, 0.3, 0.5)).astype(float)
    scores = labels + generator.normal(size=labels.shape)
    view = np.where(np.arange(300) % 3 == 0, "AP", "PA")
    side = np.where(labels == 1, np.where(generator.random(labels.shape) < 0.5, "left", "right"), "").astype(object)
    table = subgroups(
        scores, labels, ["a", "b", "c"], studies={"projection": view}, positives={"side": side}, resamples=20
    )
    assert table.loc[("all", "all"), "AUROC"] == pytest.approx(np.mean(auroc(scores, labels)))
    assert table.loc[("rarity", "rare"), "AUROC"] == pytest.approx(auroc(scores[:, 0], labels[:, 0]))
    assert table.loc[("rarity", "common"), "AUROC"] == pytest.approx(auroc(scores[:, 2], labels[:, 2]))
    some = view == "AP"
    assert table.loc[("projection", "AP"), "AUROC"] == pytest.approx(np.mean(auroc(scores[some], labels[some])))
    by_hand = [
        auroc(scores[keep, c], labels[keep, c])
        for c in range(3)
        for keep in [(labels[:, c] == 0) | (side[:, c] == "left")]
    ]
    assert table.loc[("side", "left"), "AUROC"] == pytest.approx(np.mean(by_hand))
    assert table.loc[("side", "left"), "positives"] == (side == "left").sum()
    assert (table["low"] <= table["AUROC"]).all() and (table["AUROC"] <= table["high"]).all()


def test_a_group_without_both_classes_is_empty_and_not_an_error():
    labels = np.array([[1.0], [1], [0], [0]])
    table = subgroups(labels, labels, ["a"], studies={"view": ["PA", "PA", "AP", "AP"]}, resamples=5)
    assert np.isnan(table.loc[("view", "PA"), "AUROC"]) and table.loc[("view", "PA"), "findings"] == 0


def test_rarity_counts_known_labels_and_groups_every_finding_once():
    labels = np.array([[1, 0, 0, np.nan], [1, 1, 0, np.nan], [1, 0, 0, 1], [1, 0, 1, 0]])
    assert rarity(labels, list("abcd")) == {"rare": ("b", "c"), "middle": ("d",), "common": ("a",)}


def test_attributes_and_projections_come_from_the_studies():
    collection = Planted(20)
    sides = attributes(collection, "side")
    assert sides.shape == (20, len(FINDINGS)) and set(sides.ravel()) == {"", "left", "right", "several"}
    assert ((sides != "") == (collection.labels(range(20)).numpy() == 1)).all()
    assert projections(collection) is None
    phantoms = Phantoms(30, seed=1)
    assert projections(phantoms.subset([7, 3]).subset([1])) == [phantoms.scene(3).projection]
