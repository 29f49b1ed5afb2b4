"""AUROC, its bootstrap, prompts and zero-shot classification."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import FINDINGS, Oracle, Planted, Words
from sklearn.metrics import roc_auc_score

from medvlp_kit.budget import budget
from medvlp_kit.downstream import intervals
from medvlp_kit.downstream.classification import auroc, bootstrap_auroc, zero_shot, zero_shot_scores
from medvlp_kit.downstream.encode import Examination, encode_collection
from medvlp_kit.downstream.intervals import bootstrap_mean, resample_counts
from medvlp_kit.downstream.prompts import PromptSet, as_prompt_set, negatives, phrases, prompt_set
from medvlp_kit.errors import KitError
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.phantoms.scene import FINDINGS as CHEST_FINDINGS
from medvlp_kit.run_folder import load_base

TINY = budget("tiny")


def sklearn_auroc(scores, labels):
    known = ~np.isnan(labels)
    if len(set(labels[known])) < 2:
        return np.nan
    return roc_auc_score(labels[known], scores[known])


cases = st.lists(
    st.tuples(st.integers(-3, 3), st.sampled_from([0.0, 1.0, float("nan")])), min_size=1, max_size=25
)  # few distinct scores, so that ties are the rule


@given(cases)
@settings(max_examples=80, deadline=None)
def test_auroc_equals_scikit_learn_with_ties_and_unknown_labels(case):
    scores, labels = np.array([s for s, _ in case], float), np.array([y for _, y in case])
    np.testing.assert_allclose(auroc(scores, labels), sklearn_auroc(scores, labels), atol=1e-12)


@given(st.integers(0, 1000), st.integers(4, 30))
@settings(max_examples=15, deadline=None)
def test_bootstrap_equals_scikit_learn_on_every_resample(seed, count):
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 6, (count, 3)).astype(float)
    labels = generator.choice([0, 1, np.nan], (count, 3), p=[0.6, 0.3, 0.1])
    found = bootstrap_auroc(scores, labels, resamples=20, seed=seed)
    counts = resample_counts(count, resamples=20, generator=np.random.default_rng(seed)).astype(int)
    for r in range(20):
        drawn = np.repeat(np.arange(count), counts[:, r])
        slow = [sklearn_auroc(scores[drawn, c], labels[drawn, c]) for c in range(3)]
        np.testing.assert_allclose(found.samples[r], slow, atol=1e-12)
    np.testing.assert_allclose(found.value, auroc(scores, labels))
    assert (found.undefined == np.isnan(found.samples).sum(0)).all()


def test_resamples_of_one_class_are_counted_and_left_out():
    labels = np.array([1.0] + [0.0] * 9)  # the one positive is missed by (9/10)^10 = 35 % of resamples
    found = bootstrap_auroc(np.arange(10.0), labels, resamples=2000, seed=1)
    assert 0.30 < found.undefined / 2000 < 0.40
    assert found.value == 0 and found.low == 0 and not np.isnan(found.high)
    alone = bootstrap_auroc(np.arange(3.0), np.ones(3), resamples=10, seed=0)
    assert np.isnan(alone.value) and np.isnan(alone.low) and alone.undefined == 10


def test_macro_leaves_an_undefined_finding_out_of_its_resample_only():
    scores = np.stack([np.arange(8.0), np.arange(8.0)], axis=1)
    labels = np.stack([[0, 0, 0, 0, 1, 1, 1, 1], [np.nan] * 8], axis=1).astype(float)
    found = bootstrap_auroc(scores, labels, resamples=50, seed=0)
    assert found.macro.value == found.value[0] == 1.0
    np.testing.assert_array_equal(found.macro.samples, found.samples[:, 0])


def test_a_bootstrap_does_not_depend_on_its_chunks(monkeypatch):
    scores, labels = np.random.default_rng(0).normal(size=40), np.arange(40) % 3 == 0
    whole = bootstrap_auroc(scores, labels.astype(float), resamples=30, seed=3).samples
    monkeypatch.setattr(intervals, "CHUNK", 40 * 7)
    np.testing.assert_array_equal(bootstrap_auroc(scores, labels.astype(float), resamples=30, seed=3).samples, whole)


def test_interval_of_a_mean_is_as_wide_as_theory_says_and_clusters_widen_it():
    values = np.random.default_rng(0).normal(size=400)
    found = bootstrap_mean(values, resamples=4000, seed=0)
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)
    # Each value four times is no new information: whole studies are resampled, and the interval stays the same.
    repeated = bootstrap_mean(np.repeat(values, 4), clusters=np.repeat(np.arange(400), 4), resamples=4000, seed=0)
    np.testing.assert_allclose([repeated.low, repeated.high], [found.low, found.high])
    gaps = bootstrap_mean(np.array([1.0, np.nan, 3.0]), resamples=50, seed=0)
    assert gaps.value == 2 and 1 <= gaps.low <= gaps.high <= 3


@pytest.mark.parametrize(
    ("scores", "labels", "words"),
    [
        (np.zeros(3), np.zeros(4), "give both as"),
        (np.zeros(3), np.array([0, 1, 2]), "labels must be 1"),
        (np.array([0, np.nan, 1]), np.array([0, 1, 1]), "scores hold NaN"),
        (np.zeros(0), np.zeros(0), "nothing to resample"),
    ],
)
def test_bad_scores_and_labels_give_one_line(scores, labels, words):
    with pytest.raises(KitError, match=words) as caught:
        bootstrap_auroc(scores, labels, resamples=5, seed=0)
    assert "\n" not in str(caught.value)


# prompts


@pytest.mark.parametrize("kind", ["lexicon", "held out", "plain"])
def test_every_finding_has_prompts_for_and_against_that_differ(kind):
    chosen = prompt_set(CHEST_FINDINGS, kind=kind)
    for finding in CHEST_FINDINGS:
        positive, negative = chosen.pairs[finding]
        assert positive and negative and not set(positive) & set(negative)
    # A sentence that serves two findings cannot tell them apart.
    everything = [s for positive, _ in chosen.pairs.values() for s in positive]
    assert len(everything) == len(set(everything))


def test_sided_phrases_name_their_side_only():
    for kind in ("lexicon", "plain"):
        for sentence in phrases("Pleural Effusion", side="left", kind=kind):
            assert "left" in sentence and "right" not in sentence


def test_no_finding_is_asked_with_its_sign_the_right_way_round():
    positive, negative = prompt_set(["No Finding", "Edema", "Tuberculosis"], kind="plain").pairs["No Finding"]
    assert "No abnormality." in positive and negative == ("There is edema. There is tuberculosis.",)
    positive, negative = prompt_set(["No Finding"], language="es").pairs["No Finding"]  # alone: against all ten
    assert "Los pulmones están limpios." in positive and len(negative) == 1
    assert all(phrases(finding, language="es")[0] in negative[0] for finding in CHEST_FINDINGS)


def test_the_shipped_model_tells_normal_studies_by_the_pair_of_no_finding():
    run = load_base()
    studies = Phantoms(200, seed=run.seed, split="test")
    found = encode_collection(run.model, run.tokenizer, studies, budget=run.budget, text="impression")
    normal = (found.labels.numpy() == 1).sum(1) == 0
    assert 0 < normal.sum() < len(normal)
    for kind in ("lexicon", "held out", "plain"):
        prompts = prompt_set(["No Finding"], kind=kind)
        scores = zero_shot_scores(run.model, found.image, prompts, run.tokenizer)[:, 0].numpy()
        assert auroc(scores, normal.astype(float)) > 0.9, kind


def test_own_prompts_are_accepted_and_checked():
    own = as_prompt_set({"Edema": ("edema", ["no edema", "clear"])}, ["Edema"])
    assert own.pairs["Edema"] == (("edema",), ("no edema", "clear"))
    assert own.sentences == ["edema", "no edema", "clear"]
    with pytest.raises(KitError, match="pair"):
        PromptSet("x", {"Edema": "edema"})
    with pytest.raises(KitError, match="did you mean 'Edema'"):
        own.only(["Edemo"])
    with pytest.raises(KitError, match="kind of prompt"):
        phrases("Edema", kind="plane")
    assert negatives("Tuberculosis") == ["No tuberculosis."]


def test_labels_outside_the_lexicon_are_written_as_a_sentence_writes_them_and_the_result_says_so():
    assert phrases("Viral Pneumonia", side="left") == ["There is left viral pneumonia."]
    assert phrases("COVID-19") == ["There is COVID-19."] and negatives("ARDS") == ["No ARDS."]
    assert phrases("Right Lung", side="right") == ["There is right lung."]
    assert prompt_set(["ARDS"]).name == "plain" and prompt_set(["Edema"]).name == "lexicon"
    assert prompt_set(["ARDS", "Edema"]).name == "lexicon where it knows the finding, else plain"


# zero-shot


@pytest.fixture
def exam():
    words = Words()
    return Examination(Oracle(words), words, Planted(48), budget=TINY)


def test_zero_shot_is_perfect_for_a_perfect_model_and_reversed_when_the_prompts_are(exam):
    result = zero_shot(exam.model, exam.tokenizer, exam.collection, prompts="plain", examination=exam)
    assert result.value == 1.0 and result.passed
    assert {c.name for c in result.controls} == {"shuffled images", "random weights"}
    turned = {f: (negatives(f, kind="plain"), phrases(f, kind="plain")) for f in FINDINGS}
    wrong = zero_shot(exam.model, exam.tokenizer, exam.collection, prompts=turned, examination=exam)
    assert wrong.value == 0.0 and not wrong.passed and "check signs" in wrong.conclusion


def test_images_are_encoded_once_whatever_the_number_of_prompts(exam):
    prompts = PromptSet("many", {f: ([f"there is {f} {i}" for i in range(14)], [f"no {f}"]) for f in FINDINGS})
    zero_shot(exam.model, exam.tokenizer, exam.collection, prompts=prompts, examination=exam)
    zero_shot(exam.model, exam.tokenizer, exam.collection, prompts=prompts, examination=exam)
    assert exam.model.images_seen == len(exam)
    assert exam.model.texts_seen == len(exam) + len(prompts.sentences)


def test_prompt_ensembles_equal_their_definitions(exam):
    torch.manual_seed(0)
    torch.nn.init.normal_(exam.model.text_projection.weight)  # so that wordings differ in direction
    prompts = PromptSet("p", {
        "Fracture": (["left fracture", "right fracture .", "there is fracture"], ["no fracture"]),
        "Pneumothorax": (["left pneumothorax"], ["no pneumothorax", "right fracture ."]),
    })  # fmt: skip
    model, image = exam.model, exam.encoded.image

    def unit(texts):
        return model.embed_text(model.encode_text(exam.tokenizer.encode(texts, length=20)))

    with torch.no_grad():
        x = model.embed_image(image)
        by_embedding, by_score = [], []
        for positive, negative in prompts.pairs.values():
            ends = [torch.nn.functional.normalize(unit(half).mean(0), dim=0) for half in (positive, negative)]
            by_embedding.append(x @ ends[0] - x @ ends[1])
            by_score.append((x @ unit(positive).T).mean(1) - (x @ unit(negative).T).mean(1))
    by_embedding, by_score = torch.stack(by_embedding, 1), torch.stack(by_score, 1)
    assert not torch.allclose(by_embedding, by_score, atol=1e-3)

    def scores(**options):
        return zero_shot_scores(model, image, prompts, exam.tokenizer, **options)

    torch.testing.assert_close(scores(), by_embedding)
    torch.testing.assert_close(scores(ensemble="embedding"), by_embedding)
    torch.testing.assert_close(scores(ensemble="score"), by_score)
    torch.testing.assert_close(scores(probabilities=True, temperature=0.1), torch.sigmoid(by_embedding / 0.1))
    with pytest.raises(KitError, match="ensemble"):
        scores(ensemble="max")


def test_the_trained_scorer_is_asked_not_rebuilt(exam):
    """With a scorer that is no cosine, the scores follow it, and the ensemble is the mean of its scores."""
    prompts = prompt_set(["Fracture"], kind="plain")
    features = exam.prompts(prompts.sentences)
    table = torch.randn(len(exam), 2, generator=torch.Generator().manual_seed(0))
    exam.model.similarity = lambda image, text: table[: len(image.pooled)]
    found = zero_shot_scores(exam.model, exam.encoded.image, prompts, text=features)
    torch.testing.assert_close(found[:, 0], table[:, 0] - table[:, 1])
