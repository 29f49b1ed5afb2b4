"""Sampled prompt sets and their spread, templates by severity and location, zero-shot among classes, counts of encodings."""

import numpy as np
import pytest
import torch
from planted import FINDINGS, Oracle, Planted, Words
from sklearn.metrics import balanced_accuracy_score

from medvlp_kit.budget import budget
from medvlp_kit.downstream.classification import auroc, zero_shot, zero_shot_scores
from medvlp_kit.downstream.encode import Examination, encode_collection
from medvlp_kit.downstream.intervals import resample_counts
from medvlp_kit.downstream.multi_class import bootstrap_balanced_accuracy, class_scores, multi_class, single_finding
from medvlp_kit.downstream.prompt_sets import located_phrases, located_prompt_set, sample_prompt_sets, wordings
from medvlp_kit.downstream.prompt_spread import prompt_spread, spread_scores
from medvlp_kit.downstream.prompts import PromptSet, negatives, phrases, plain_name
from medvlp_kit.errors import KitError
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.phantoms.report import prompts as report_prompts
from medvlp_kit.phantoms.scene import FINDINGS as CHEST_FINDINGS
from medvlp_kit.run_folder import load_base

TINY = budget("tiny")


@pytest.fixture
def exam():
    words = Words()
    return Examination(Oracle(words), words, Planted(48), budget=TINY)


# how often things are encoded


def test_fourteen_prompts_on_a_thousand_images_encode_each_image_once():
    words = Words()
    exam = Examination(Oracle(words), words, Planted(1000), budget=TINY.but(test_studies=1000, resamples=10))
    assert len(exam) == 1000
    names = [FINDINGS[i % 3] for i in range(7)]
    fourteen = PromptSet("fourteen", {
        finding: (
            [f"there is {finding} {i} ." for i in range(7) if names[i] == finding],
            [f"no {finding} {i} ." for i in range(7) if names[i] == finding],
        )
        for finding in FINDINGS
    })  # fmt: skip
    assert len(fourteen.sentences) == 14
    zero_shot(exam.model, words, exam.collection, prompts=fourteen, examination=exam)
    assert exam.model.images_seen == 1000
    assert exam.model.texts_seen == 1000 + 14  # the reports, once, and the prompts
    exam.control.model.words = words  # the control is a copy, and would not learn the words that follow
    prompt_spread(exam.model, words, exam.collection, count=30, examination=exam)
    multi_class(exam.model, words, exam.collection, kind="plain", examination=exam)
    assert exam.model.images_seen == 1000


# sampling


@pytest.mark.parametrize("denial", ["named", "normal", "either"])
def test_sampled_sets_are_sensible_repeatable_and_do_not_depend_on_how_many_are_drawn(denial):
    findings = [*CHEST_FINDINGS, "ARDS"]
    sets = sample_prompt_sets(findings, count=40, seed=3, denial=denial)
    assert [one.pairs for one in sample_prompt_sets(findings, count=7, seed=3, denial=denial)] == [
        one.pairs for one in sets[:7]
    ]
    assert sets[0].pairs != sample_prompt_sets(findings, count=1, seed=4, denial=denial)[0].pairs
    assert len({str(dict(one.pairs)) for one in sets}) > 30
    for one in sets:
        for finding, (positive, negative) in one.pairs.items():
            known = wordings(finding)
            name = [n for n, said in zip(known.names, known.affirmed) if set(positive) <= set(said)]
            assert len(name) >= 1 and not set(positive) & set(negative)
            if finding == "ARDS" or denial == "named":  # a denial speaks of the finding by the name that is affirmed
                assert any(set(negative) <= set(said) for n, said in zip(known.names, known.denied) if n in name)


def test_the_number_of_templates_can_be_fixed_and_frames_are_shared_by_the_findings():
    for one in sample_prompt_sets(["Edema", "Fracture", "Pneumothorax"], count=10, templates=2, denial="named"):
        places = []
        for finding, (positive, negative) in one.pairs.items():
            assert len(positive) == len(negative) == 2
            known = wordings(finding)
            said = next(said for said in known.affirmed if set(positive) <= set(said))
            places.append([said.index(sentence) for sentence in positive])
        assert places[0] == places[1] == places[2]


def test_no_held_out_wording_unless_asked():
    everything = {s for said in wordings("Edema", held_out=False).affirmed for s in said}
    assert not everything & set(report_prompts("Edema", held_out=True, limit=10**6))
    assert everything < {s for said in wordings("Edema").affirmed for s in said}


def test_no_denial_holds_an_article_after_its_no():
    for finding in CHEST_FINDINGS:
        denied = [s for said in wordings(finding).denied for s in said]
        assert not any(f" {word} an " in s.lower() or f" {word} a " in s.lower() for s in denied for word in ("no", "of"))


def test_no_finding_is_asked_the_right_way_round():
    (one,) = sample_prompt_sets(["No Finding"], count=1, denial="normal", templates=100)
    positive, negative = one.pairs["No Finding"]
    assert "Normal study." in positive and len(negative) > 1
    assert all(plain_name(finding) in text.lower() for text in negative for finding in CHEST_FINDINGS)


def test_every_wording_of_no_finding_tells_the_normal_studies():
    """Sentences about "an abnormality" would not: the model cannot place them, and normal studies lie in the middle."""
    run = load_base()
    found = encode_collection(
        run.model, run.tokenizer, Phantoms(200, seed=run.seed, split="test"), budget=run.budget, text="impression"
    )
    normal = ((found.labels.numpy() == 1).sum(1) == 0).astype(float)
    for prompts in sample_prompt_sets(["No Finding"], count=10):
        scores = zero_shot_scores(run.model, found.image, prompts, run.tokenizer)[:, 0].numpy()
        assert auroc(scores, normal) > 0.9, prompts


@pytest.mark.parametrize("kind", ["lexicon", "held out", "plain"])
def test_templates_cross_severity_and_location_and_say_both(kind):
    cells = located_phrases("Lung Lesion", kind=kind)
    assert len(cells) == 3 * 2 * 3
    for (severity, side, zone), (sentence,) in cells.items():
        assert side in sentence and ("mid" if zone == "middle" else zone) in sentence
    assert len({sentence for cell in cells.values() for sentence in cell}) == 18  # so severities differ too
    assert len(located_phrases("Edema", kind=kind)) == 3
    assert list(located_phrases("Support Devices", kind=kind)) == [(None, "left", None), (None, "right", None)]
    assert len(located_phrases("ARDS")) == 18
    chosen = located_prompt_set(["Lung Lesion", "Edema"], kind=kind)
    assert [len(positive) for positive, _ in chosen.pairs.values()] == [18, 3]
    assert chosen.pairs["Edema"][1] == tuple(negatives("Edema", kind=kind))


# spread


def test_the_spread_is_over_sets_and_each_set_scores_as_it_does_alone(exam):
    torch.manual_seed(0)
    torch.nn.init.normal_(exam.model.text_projection.weight)  # so that wordings differ
    sets = sample_prompt_sets(list(FINDINGS), count=30, seed=1)
    # among sensible sets, one that asks for the opposite: it must be seen at the lower end
    turned = PromptSet("turned", {f: (pair[1], pair[0]) for f, pair in sets[0].pairs.items()})
    result = prompt_spread(exam.model, exam.tokenizer, exam.collection, sets=[*sets, turned], examination=exam)
    for i in (0, 17):
        alone = zero_shot(exam.model, exam.tokenizer, exam.collection, prompts=sets[i], examination=exam)
        assert result.table["AUROC"].iloc[i] == pytest.approx(alone.value)
        assert result.table["low"].iloc[i] == pytest.approx(alone.low)
    values = result.table["AUROC"]
    assert values.iloc[-1] == pytest.approx(1 - values.iloc[0])
    assert result.value == pytest.approx(np.median(values)) and result.low <= result.value <= result.high
    assert [e.value for e in result.also] == pytest.approx(list(np.quantile(values, (0, 0.25, 0.75, 1))))
    assert {control.name for control in result.controls} == {"shuffled images", "random weights"}


def test_scores_of_a_spread_do_not_depend_on_what_else_is_asked_or_on_the_batches(exam):
    sets = sample_prompt_sets(list(FINDINGS), count=30)
    together = spread_scores(exam, sets)
    alone = spread_scores(exam, sets[4:5])
    np.testing.assert_allclose(together[4:5], alone, atol=1e-6)
    few = exam.collection.subset(range(5))
    other = Examination(exam.model, exam.tokenizer, few, budget=TINY.but(batch_size=2))
    np.testing.assert_allclose(spread_scores(other, sets)[:, :5], together[:, :5], atol=1e-6)


# among classes


def test_class_scores_equal_their_definitions(exam):
    torch.manual_seed(0)
    torch.nn.init.normal_(exam.model.text_projection.weight)
    classes = {"Pneumothorax": ["left pneumothorax"], "Fracture": ["left fracture", "right fracture .", "fracture"]}
    model, image = exam.model, exam.encoded.image
    with torch.no_grad():
        x = model.embed_image(image)
        unit = [model.embed_text(model.encode_text(exam.tokenizer.encode(s, length=20))) for s in classes.values()]
        slow = {
            "embedding": [x @ torch.nn.functional.normalize(u.mean(0), dim=0) for u in unit],
            "score": [(x @ u.T).mean(1) for u in unit],
            "max": [(x @ u.T).max(1).values for u in unit],
        }
    for ensemble, columns in slow.items():
        found = class_scores(model, image, classes, exam.tokenizer, ensemble=ensemble)
        torch.testing.assert_close(found, torch.stack(columns, 1))
    few = type(image)(image.pooled[:3], image.patches[:3], image.grid)
    torch.testing.assert_close(
        class_scores(model, few, classes, exam.tokenizer), class_scores(model, image, classes, exam.tokenizer)[:3]
    )  # nothing is standardised over the other images


def test_balanced_accuracy_equals_scikit_learn_on_every_resample():
    generator = np.random.default_rng(0)
    truth, chosen = generator.integers(0, 4, 25), generator.integers(0, 4, 25)
    found = bootstrap_balanced_accuracy(chosen, truth, classes=4, resamples=20, seed=1)
    counts = resample_counts(25, resamples=20, generator=np.random.default_rng(1)).astype(int)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class that a resample lacks
        for r in range(20):
            rows = np.repeat(np.arange(25), counts[:, r])
            assert found.samples[r] == pytest.approx(balanced_accuracy_score(truth[rows], chosen[rows]))


def test_only_studies_with_one_right_answer_take_part():
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1], [0, 1, np.nan]])
    rows, truth = single_finding(labels)
    assert rows.tolist() == [0, 3] and truth.tolist() == [0, 2]


def test_a_perfect_model_names_every_single_finding_and_controls_do_not(exam):
    result = multi_class(exam.model, exam.tokenizer, exam.collection, kind="plain", examination=exam)
    assert result.value == 1.0 and (result.table["recall"] == 1.0).all()
    assert result.n == len(single_finding(exam.encoded.labels)[0]) < len(exam)
    majority = {control.name: control.value for control in result.controls}["majority answer"]
    assert majority == pytest.approx(1 / 3)
    wrong = {f: phrases(FINDINGS[(i + 1) % 3], kind="plain") for i, f in enumerate(FINDINGS)}
    turned = multi_class(exam.model, exam.tokenizer, exam.collection, classes=wrong, examination=exam)
    assert turned.value == 0.0
    assert turned.table["most often taken for"].tolist() == [FINDINGS[2], FINDINGS[0], FINDINGS[1]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda e: sample_prompt_sets(["Edema"], denial="no"), "denial"),
        (lambda e: sample_prompt_sets(["Edema"], count=0), "at least one prompt set"),
        (lambda e: prompt_spread(e.model, e.tokenizer, e.collection, count=29, examination=e), "at least 30"),
        (lambda e: located_phrases("Edema", kind="planes"), "kind of prompt"),
        (lambda e: class_scores(e.model, e.encoded.image, {"a": "text"}, e.tokenizer), "list of at least one sentence"),
        (lambda e: class_scores(e.model, e.encoded.image, {"a": ["x"]}, e.tokenizer, ensemble="sum"), "ensemble"),
        (
            lambda e: multi_class(e.model, e.tokenizer, e.collection, classes={"a": ["x"]}, examination=e),
            "are not the labels of the data",
        ),
        (lambda e: bootstrap_balanced_accuracy([0, 1], [0], classes=2), "one whole number a study"),
    ],
)
def test_faults_are_one_line(exam, call, words):
    with pytest.raises(KitError, match=words) as caught:
        call(exam)
    assert "\n" not in str(caught.value)


def test_zero_shot_scores_do_not_depend_on_the_other_images(exam):
    prompts = sample_prompt_sets(list(FINDINGS), count=1)[0]
    image = exam.encoded.image
    few = type(image)(image.pooled[:7], image.patches[:7], image.grid)
    whole = zero_shot_scores(exam.model, image, prompts, exam.tokenizer)
    torch.testing.assert_close(zero_shot_scores(exam.model, few, prompts, exam.tokenizer), whole[:7])
