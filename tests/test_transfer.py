"""Frozen features, linear probes, few-shot, fine-tuning and nested label fractions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import CHANNELS, FINDINGS, Oracle, Planted, Words
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from medvlp_kit.budget import budget
from medvlp_kit.downstream.classification import zero_shot_scores
from medvlp_kit.downstream.encode import encode_collection
from medvlp_kit.downstream.few_shot import FewShot, draw_shots, few_shot, few_shot_curve, tip_adapter
from medvlp_kit.downstream.fine_tune import (
    Classifier,
    best_of,
    fine_tune,
    fit_classifier,
    masked_loss,
    parameter_groups,
    predict,
    stages,
)
from medvlp_kit.downstream.frozen import Transfer, encode_images
from medvlp_kit.downstream.label_fractions import nested_subsets
from medvlp_kit.downstream.linear_probe import fit_linear_probe, linear_probe, probe_curve, shuffled
from medvlp_kit.encoders.features import ImageFeatures
from medvlp_kit.encoders.image import build_image_encoder
from medvlp_kit.errors import KitError

TINY = budget("tiny").but(test_studies=150, train_studies=200, resamples=50)
SEEDS = {"train": 1, "validation": 2, "test": 3}


class Splits(Planted):
    """Planted studies with three splits, as phantoms have them: streams of their own; one label in ten is wrong."""

    def split(self, name):
        part = Splits(len(self), seed=SEEDS[name])
        part.name = f"planted/{name}"
        return part

    def labels(self, indices):
        flips = torch.rand(len(self), len(FINDINGS), generator=torch.Generator().manual_seed(len(self))) < 0.1
        return (self.truth.any(-1) ^ flips)[list(indices)].float()


class Narrow(Oracle):
    """The oracle behind a bottleneck of one number a finding: with random weights, part of the truth is lost there."""

    def __init__(self, words):
        super().__init__(words)
        self.squeeze, self.image_projection = nn.Linear(CHANNELS, 4, bias=False), nn.Linear(4, CHANNELS, bias=False)
        pairs = torch.zeros(4, CHANNELS)
        for finding in range(len(FINDINGS)):
            pairs[finding, 2 * finding : 2 * finding + 2] = 1
        pairs[3, -1] = 1
        with torch.no_grad():
            self.squeeze.weight.copy_(pairs)
            self.image_projection.weight.copy_(pairs.T)

    def encode_image(self, images):
        patches = self.squeeze(super().encode_image(images).patches)
        return ImageFeatures(patches.mean(1), patches, (4, 4))


class Small(nn.Module):
    """An encoder of two convolutions that averages its second map; both stages can be told apart by name."""

    width = 12

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(CHANNELS, 8, 4, stride=4)
        self.layer1 = nn.Conv2d(8, 8, 1)
        self.layer2 = nn.Conv2d(8, 12, 1)

    def forward(self, images):
        maps = self.layer2(torch.relu(self.layer1(torch.relu(self.stem(images)))))
        patches = maps.flatten(2).transpose(1, 2)
        return ImageFeatures(patches.mean(1), patches, tuple(maps.shape[-2:]))


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small run fastest on one thread, and far faster where other tests run beside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def data():
    torch.manual_seed(0)
    model = Narrow(Words())
    model.image_encoder = Small()
    return Transfer(model, Splits(200), budget=TINY, seed=1)


# label fractions


@given(st.integers(100, 400), st.integers(0, 100), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_fractions_are_nested_and_of_the_right_size(count, seed, per_patient):
    parts = nested_subsets(count, fractions=(1.0, 0.01, 0.1, 0.5), seed=seed)
    assert list(parts) == [0.01, 0.1, 0.5, 1.0]
    for fraction, rows in parts.items():
        assert len(rows) == len(set(rows)) == round(fraction * count) and (np.diff(rows) > 0).all()
    for small, large in zip(list(parts.values()), list(parts.values())[1:]):
        assert set(small) <= set(large)
    patients = np.arange(count) // per_patient
    whole = nested_subsets(count, fractions=(0.1, 0.5, 1.0), seed=seed, patients=patients)
    for fraction, rows in whole.items():
        inside = {patients[row] for row in rows}
        assert set(rows) == {i for i in range(count) if patients[i] in inside}  # no patient is half in
        assert round(fraction * count) <= len(rows) < round(fraction * count) + per_patient
    assert set(whole[0.1]) <= set(whole[0.5]) and len(whole[1.0]) == count


def test_a_subset_does_not_depend_on_which_other_fractions_are_asked_for_but_on_the_seed():
    alone, among = nested_subsets(300, fractions=(0.1,)), nested_subsets(300, fractions=(0.01, 0.1, 1))
    np.testing.assert_array_equal(alone[0.1], among[0.1])
    assert set(alone[0.1]) != set(nested_subsets(300, fractions=(0.1,), seed=1)[0.1])


# frozen features


def test_features_do_not_depend_on_the_batches_and_equal_those_of_the_examination(data):
    model, studies = data.model, data.studies["test"]
    whole = encode_images(model, studies, image_size=32, batch_size=64)
    for size in (1, 7):
        other = encode_images(model, studies, image_size=32, batch_size=size)
        np.testing.assert_allclose(other.pooled, whole.pooled, atol=1e-6)
        np.testing.assert_allclose(other.embedding, whole.embedding, atol=1e-6)
    full = encode_collection(model, model.words, studies, budget=TINY)
    np.testing.assert_allclose(whole.embedding, full.image_embedding, atol=1e-6)
    np.testing.assert_array_equal(whole.labels, full.labels)


def test_every_image_is_encoded_once_for_all_probes(data):
    data.control.model.words = data.model.words  # the control is a copy, and would not learn the words that follow
    linear_probe(data, fraction=0.2)
    probe_curve(data, fractions=(0.1, 1.0), draws=2)
    few_shot(data, data.model.words, k=4)
    few_shot(data, data.model.words, k=8, method="linear probe")
    assert data.model.images_seen == 200 + 150 + 150
    assert data.train.labels.shape == (200, len(FINDINGS))


def test_the_control_has_the_same_studies_and_other_weights(data):
    assert data.control.studies is data.studies
    np.testing.assert_array_equal(data.control.test.labels, data.test.labels)
    assert not np.allclose(data.control.test.embedding, data.test.embedding)


# linear probe


def test_the_probe_equals_scikit_learn_and_takes_the_strength_that_is_best_on_validation(data):
    train, held = data.train, data.validation
    strengths = (1e-3, 1e-1, 10.0)
    probe = fit_linear_probe(
        train.pooled, train.labels, validation=(held.pooled, held.labels), strengths=strengths
    )
    best = {}
    for strength in strengths:
        pipes = [
            make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=200)).fit(train.pooled.astype(float), y)
            for y in train.labels.T
        ]
        best[strength] = np.mean(
            [roc_auc_score(y, pipe.decision_function(held.pooled.astype(float))) for pipe, y in zip(pipes, held.labels.T)]
        )
        if strength == probe.strength:
            theirs = np.stack([pipe.decision_function(data.test.pooled.astype(float)) for pipe in pipes], axis=1)
            np.testing.assert_allclose(probe.scores(data.test.pooled), theirs, rtol=1e-6, atol=1e-8)
    assert probe.chosen_from == pytest.approx(best)
    assert probe.strength == max(best, key=best.get)


def test_unknown_labels_are_left_out_and_a_finding_of_one_class_scores_nothing(data):
    labels = data.train.labels.copy()
    labels[:, 0] = 0
    labels[::2, 1] = np.nan
    held = (data.validation.pooled, data.validation.labels)
    probe = fit_linear_probe(data.train.pooled, labels, validation=held, strengths=(0.1,), standardise=False)
    assert probe.unfit == (0,) and (probe.scores(data.test.pooled)[:, 0] == 0).all()
    known = fit_linear_probe(
        data.train.pooled[1::2], labels[1::2, 1:], validation=(held[0], held[1][:, 1:]), strengths=(0.1,), standardise=False
    )
    np.testing.assert_allclose(probe.weight[:, 1], known.weight[:, 0])


def test_a_probe_result_beats_its_controls_where_there_is_something_to_find(data):
    result = linear_probe(data, fraction=0.5, seed=1)
    assert 0.8 < result.value < 1 and result.passed
    controls = {control.name: control.value for control in result.controls}
    assert abs(controls["shuffled labels"] - 0.5) < 0.25 and set(controls) == {"random weights", "shuffled labels"}
    assert "100 training studies (50 %)" in result.rule and "best on validation" in result.rule
    assert list(result.table.index) == [*FINDINGS, "macro"] and "MCC low" in result.table


def test_the_curve_is_the_result_of_each_fraction(data):
    curve = probe_curve(data, fractions=(0.1, 1.0), draws=2, seed=5)
    assert curve["studies"].tolist() == [20, 200, 20, 200]
    assert curve["AUROC"][1] == curve["AUROC"][3] != curve["AUROC"][0]
    assert curve["AUROC"][2] == pytest.approx(linear_probe(data, fraction=0.1, seed=6).value)


def test_shuffling_keeps_rows_together():
    labels = np.arange(12).reshape(6, 2)
    mixed = shuffled(labels, seed=0)
    assert sorted(map(tuple, mixed)) == sorted(map(tuple, labels)) and (mixed != labels).any()


# few-shot


def test_shots_are_nested_and_of_both_kinds():
    labels = np.array([[1, 0], [0, 1], [1, 1], [0, 0], [1, np.nan], [0, np.nan], [1, 0]], dtype=float)
    drawn = draw_shots(labels, shots=(2, 1), seed=3)
    for column in range(2):
        few, more = drawn[1][column], drawn[2][column]
        assert labels[few, column].tolist() == [1, 0] and labels[more, column].tolist() == [1, 1, 0, 0]
        assert set(few) <= set(more) and len(set(more)) == 4


def test_the_adapter_equals_its_formula_in_loops_and_one_hot_values_equal_signs():
    generator = torch.Generator().manual_seed(0)
    query, keys = (nn.functional.normalize(torch.randn(n, 6, generator=generator), dim=1).numpy() for n in (5, 4))
    zero, hot = np.arange(10.0).reshape(5, 2), np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    found = tip_adapter(query, keys, hot, zero, alpha=2.0, beta=5.0)
    for n in range(5):
        for c in range(2):
            slow = zero[n, c] + 2 * sum(np.exp(-5 * (1 - query[n] @ keys[i])) * hot[i, c] for i in range(4))
            assert found[n, c] == pytest.approx(slow)
    signs = tip_adapter(query, keys, hot[:, :1] - hot[:, 1:], zero[:, :1] - zero[:, 1:], alpha=2.0, beta=5.0)
    np.testing.assert_allclose(signs[:, 0], found[:, 0] - found[:, 1])
    np.testing.assert_array_equal(tip_adapter(query, keys, hot, zero, alpha=0.0, beta=5.0), zero)


def test_its_prompts_are_the_zero_shot_of_training(data):
    shot = FewShot(data, data.model.words, prompts="plain", shots=(2,))
    encoded = encode_collection(data.model, data.model.words, data.studies["test"], budget=TINY)
    scores = zero_shot_scores(data.model, encoded.image, shot.prompts, data.model.words, length=TINY.text_length)
    np.testing.assert_allclose(shot.zero["test"], scores / data.model.temperature().item(), atol=1e-5)


def test_an_adapter_beats_random_weights_and_stands_beside_its_prompts(data):
    data.control.model.words = data.model.words
    result = few_shot(data, data.model.words, k=8, prompts="plain")
    controls = {control.name: control.value for control in result.controls}
    assert set(controls) == {"random weights", "zero-shot"} and result.value > controls["random weights"] + 0.05
    probe = few_shot(data, data.model.words, k=16, method="linear probe", prompts="plain")
    assert probe.value > 0.75 and [e.name for e in probe.also] == ["macro-AP", "zero-shot"]


def test_more_shots_help_a_probe(data):
    curve = few_shot_curve(data, data.model.words, shots=(1, 16), draws=2)
    mean = curve.groupby(["method", "k"])["AUROC"].mean()
    assert mean["linear probe", 16] > mean["linear probe", 1]
    assert len(curve) == 2 * (1 + 2 * 2) and curve["k"].min() == 0


# fine-tuning


@pytest.mark.parametrize("name", ["resnet10t", "kit_vit", "densenet121", "convnext_atto"])
def test_stages_hold_every_parameter_once_from_low_to_high(name):
    encoder = build_image_encoder(name, channels=1, image_size=32)
    ordered = stages(encoder)
    parameters = [id(p) for group in ordered for p in group]
    assert len(parameters) == len(set(parameters)) == sum(1 for _ in encoder.parameters())
    assert len(ordered) >= 3
    names = {id(p): n for n, p in encoder.named_parameters()}
    first = names[id(ordered[0][0])]
    assert any(word in first for word in ("conv", "patch", "stem", "cls", "position", "class")), first


def test_rates_fall_from_the_head_down_and_vectors_do_not_decay():
    model = Classifier(Small(), 3)
    groups = parameter_groups(model, learning_rate=1e-2, decay=0.5, encoder_rate=0.1)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rate[id(model.head.weight)] == rate[id(model.norm.weight)] == 1e-2
    assert rate[id(model.encoder.layer2.weight)] == pytest.approx(1e-3)
    assert rate[id(model.encoder.layer1.bias)] == pytest.approx(5e-4)
    assert rate[id(model.encoder.stem.weight)] == pytest.approx(2.5e-4)
    assert all(group["weight_decay"] == (0.05 if group["params"][0].ndim > 1 else 0) for group in groups)
    assert len(rate) == len(list(model.parameters()))
    frozen = parameter_groups(model, learning_rate=1e-2, encoder_rate=0.0)
    assert sum(len(group["params"]) for group in frozen) == 4


def test_unknown_labels_give_no_loss_and_no_gradient():
    logits = torch.zeros(2, 2, requires_grad=True)
    loss = masked_loss(logits, torch.tensor([[1.0, float("nan")], [float("nan"), 0.0]]))
    assert loss.item() == pytest.approx(np.log(2))
    loss.backward()
    assert logits.grad.tolist() == [[-0.25, 0.0], [0.0, 0.25]]
    assert masked_loss(logits, torch.full((2, 2), float("nan"))).item() == 0


def fitted(data, encoder=None, **options):
    train = data.studies["train"]
    return fit_classifier(
        encoder or data.model.image_encoder, data.images("train"), train.labels(range(200)).numpy(),
        validation=(data.images("validation"), data.validation.labels), **({"steps": 300, "learning_rate": 1e-2} | options),
    )  # fmt: skip


def test_fine_tuning_learns_keeps_its_best_step_and_leaves_the_encoder_as_it_was(data):
    before = {name: value.clone() for name, value in data.model.image_encoder.state_dict().items()}
    fit = fitted(data)
    assert fit.validation > 0.7 and fit.validation == fit.history["validation AUROC"].max()
    for name, value in data.model.image_encoder.state_dict().items():
        assert torch.equal(value, before[name])
    scores = fit.scores(data.images("test"))
    assert roc_auc_score(data.test.labels, scores) > 0.65
    np.testing.assert_allclose(predict(fit.model, data.images("test"), batch_size=7), scores, atol=1e-5)
    again = fitted(data)
    np.testing.assert_array_equal(again.scores(data.images("test")), scores)


def test_a_frozen_encoder_stays_frozen_and_the_best_rate_is_taken_on_validation(data):
    fit = fitted(data, encoder_rate=0.0, steps=20)
    for name, value in data.model.image_encoder.state_dict().items():
        assert torch.equal(fit.model.encoder.state_dict()[name], value)
    lazy = fitted(data, steps=20, learning_rate=1e-7)
    assert best_of([lazy, fit]) is (fit if fit.validation > lazy.validation else lazy)


def test_batch_statistics_of_a_frozen_encoder_do_not_move():
    encoder = nn.Sequential(nn.BatchNorm2d(CHANNELS), Small())
    encoder.width = Small.width
    data = Transfer(Oracle(Words()), Splits(60), budget=TINY.but(test_studies=20))
    fit = fit_classifier(
        encoder, data.images("train"), data.studies["train"].labels(range(60)).numpy(), steps=3, encoder_rate=0.0,
        validation=(data.images("validation"), data.validation.labels),
    )  # fmt: skip
    assert (fit.model.encoder[0].running_mean == 0).all()


def test_the_fine_tuning_result_stands_beside_scratch_probe_and_supervised(data):
    result = fine_tune(data, fraction=0.5, steps=40, learning_rates=(3e-2,), supervised=Small())
    assert [control.name for control in result.controls] == ["from scratch"]
    assert {"linear probe", "supervised pretraining"} <= {e.name for e in result.also}
    assert "100 studies (50 %) for 40 steps" in result.rule and 0.5 < result.value <= 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda d: nested_subsets(50, fractions=(0.01,)), "less than one study"),
        (lambda d: nested_subsets(50, fractions=(10, 1)), "above 0 and at most 1"),
        (lambda d: nested_subsets(500, patients=["a"]), "one patient a study"),
        (lambda d: d.part("tests"), "did you mean 'test'"),
        (lambda d: d.test.features("pool"), "features"),
        (lambda d: encode_images(d.model, d.studies["test"].subset([]), image_size=32), "no study to encode"),
        (lambda d: draw_shots(d.train.labels, shots=(500,)), "too few for 500 shots"),
        (lambda d: draw_shots(d.train.labels, shots=(0, 1)), "at least one case"),
        (lambda d: few_shot(d, d.model.words, method="cache"), "few-shot method"),
        (lambda d: FewShot(d, d.model.words, shots=(2,)).scores(3, "adapter"), "number of shots"),
        (lambda d: linear_probe(d, fraction=0.005), "training studies: give more"),
        (lambda d: linear_probe(d, strengths=()), "at least one"),
        (lambda d: fitted(d, steps=0), "one step and two images at least"),
        (lambda d: fitted(d, decay=0.0), "decay above 0"),
        (
            lambda d: fit_linear_probe(d.train.pooled, d.train.labels[:, 0], validation=(d.test.pooled, d.test.labels)),
            "of the same studies",
        ),
    ],
)
def test_faults_are_one_line(data, call, words):
    with pytest.raises(KitError, match=words) as caught:
        call(data)
    assert "\n" not in str(caught.value)
