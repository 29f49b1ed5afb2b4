"""Encoding, results, probes and the evaluation of a run."""

import copy
import json
import math
import re

import pandas as pd
import pytest
import torch
from planted import Oracle, Planted, Words

from medvlp_kit import recipes
from medvlp_kit.budget import budget
from medvlp_kit.downstream.encode import (
    Examination,
    encode_collection,
    evaluating,
    held_out,
    join_texts,
    randomised,
    similarity,
    texts_at,
)
from medvlp_kit.downstream.evaluate import TASKS, evaluate, examine, open_data, write
from medvlp_kit.downstream.probes import one_sided, side_swap, swap_sides
from medvlp_kit.downstream.prompts import phrases
from medvlp_kit.downstream.result import Estimate, Result
from medvlp_kit.errors import KitError
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.phantoms.scene import SIDED
from medvlp_kit.text import ReportTokenizer

TINY = budget("tiny").but(test_studies=20, resamples=50)


@pytest.fixture(scope="module")
def phantoms():
    return Phantoms(20, split="test", image_size=32)


@pytest.fixture(scope="module")
def tokenizer(phantoms):
    return ReportTokenizer.train([phantoms.report(i).text for i in range(20)], vocabulary_size=300)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    model = recipes.build("convirt", budget=TINY, vocabulary_size=tokenizer.vocabulary_size, channels=1).model
    return model.train()


# encoding


def test_features_do_not_depend_on_the_batches(model, tokenizer, phantoms):
    whole = encode_collection(model, tokenizer, phantoms, budget=TINY, batch_size=20)
    for batch_size in (1, 7):
        split = encode_collection(model, tokenizer, phantoms, budget=TINY, batch_size=batch_size)
        close = dict(rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(split.image_embedding, whole.image_embedding, **close)
        torch.testing.assert_close(split.text_embedding, whole.text_embedding, **close)
        torch.testing.assert_close(split.image.patches, whole.image.patches, **close)
        mask = whole.text.mask
        assert (split.text.mask == mask).all() and split.sentences == whole.sentences
        torch.testing.assert_close(split.text.tokens[mask], whole.text.tokens[mask], **close)
        torch.testing.assert_close(split.labels, whole.labels)
    assert whole.labels.shape == (20, 10) and len(whole) == 20


def test_each_module_gets_its_mode_back_also_after_an_error(model, tokenizer, phantoms):
    model.image_encoder.eval()  # a frozen part inside a model in training
    before = {name: module.training for name, module in model.named_modules()}
    encode_collection(model, tokenizer, phantoms, budget=TINY)
    assert {name: module.training for name, module in model.named_modules()} == before
    with pytest.raises(RuntimeError, match="planned"), evaluating(model):
        assert not any(module.training for module in model.modules()) and torch.is_inference_mode_enabled()
        raise RuntimeError("planned")
    assert {name: module.training for name, module in model.named_modules()} == before
    model.train()


def test_a_probe_can_train_on_the_features(model, tokenizer, phantoms):
    encoded = encode_collection(model, tokenizer, phantoms.subset([0, 1]), budget=TINY)  # one batch only
    head = torch.nn.Linear(encoded.image_embedding.shape[1], 1)
    head(encoded.image_embedding).sum().backward()
    assert head.weight.grad.abs().sum() > 0


def test_a_longer_neighbour_changes_no_score(model, tokenizer, phantoms):
    """Joining pads the shorter text; its masked tokens must not be seen."""
    exam = Examination(model, tokenizer, phantoms, budget=TINY)
    short, long = ["No effusion."], [" ".join(["There is a left pleural effusion."] * 3)]
    alone = exam.scores(short)
    joined = join_texts([exam.prompts(short), exam.prompts(long)])
    assert joined.mask.shape[1] > int(joined.mask[0].sum())
    torch.testing.assert_close(similarity(model, exam.encoded.image, texts_at(joined, [0])), alone)


def test_an_examination_encodes_everything_once_and_keeps_prompts_in_order():
    words = Words()
    exam = Examination(Oracle(words), words, Planted(20), budget=TINY)
    for _ in range(2):
        assert exam.scores(["a b", "left fracture", "a b"]).shape == (20, 3)
    first = exam.prompts(["left fracture", "right fracture"]).pooled
    assert (first == exam.model.encode_text(words.encode(["left fracture", "right fracture"], length=9)).pooled).all()
    # 20 reports, 3 distinct prompts, and the 2 texts that this test has just encoded itself
    assert exam.model.images_seen == 20 and exam.model.texts_seen == 20 + 3 + 2
    assert exam.control.model is not exam.model and exam.control is exam.control
    assert exam.control.encoded is not exam.encoded


def test_random_weights_are_new_reproducible_and_leave_the_model_alone(model):
    before = copy.deepcopy(model.state_dict())
    first, again, other = randomised(model, seed=0), randomised(model, seed=0), randomised(model, seed=1)
    state = torch.random.get_rng_state()
    randomised(model)
    assert (torch.random.get_rng_state() == state).all()
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
        drawn = dict(first.named_parameters())[name]
        assert torch.equal(drawn, dict(again.named_parameters())[name])
        if value.ndim > 1:
            assert not torch.equal(drawn, value) and not torch.equal(drawn, dict(other.named_parameters())[name])
    assert first.temperature() == model.temperature()


def test_held_out_studies_are_those_of_the_split_and_no_more_than_wanted():
    collection = Planted(30)
    assert len(held_out(collection, "test")) == len(held_out(collection, None)) == 30
    few = held_out(collection, "test", most=10, seed=1)
    chosen = [int(few.study(i).identifier) for i in range(10)]
    assert chosen == sorted(set(chosen)) and chosen != list(range(10))
    with pytest.raises(KitError, match="no study in the split 'train'"):
        held_out(collection, "train")


# results


def result(value=0.8, low=0.7, high=0.9, controls=(Estimate("chance", 0.5),), n=100, **changes) -> Result:
    table = pd.DataFrame({"AUROC": [0.8, math.nan], "present": [3, 0]}, index=pd.Index(["a", "b<c"], name="finding"))
    facts = dict(rule="mean of all", split="the test split", prompts="plain", seed=7, table=table)
    return Result("task", "metric", value, low, high, controls, n, "studies", **(facts | changes))


@pytest.mark.parametrize(
    ("changes", "words", "passed"),
    [
        ({}, "Better than every control", True),
        ({"n": 12}, "Too few data to conclude: n = 12", False),
        ({"n": 90, "studies": 2}, "Too few data to conclude: n = 90 studies in 2 studies", False),
        ({"controls": (Estimate("chance", 0.5), Estimate("shuffled", 0.6, 0.4, 0.75))}, "overlaps", False),
        ({"controls": (Estimate("shuffled", 0.95, 0.92, 0.99),)}, "Worse than the control", False),
        ({"value": math.nan, "low": math.nan, "high": math.nan}, "not defined", False),
        ({"controls": (Estimate("random", math.nan), Estimate("chance", 0.5))}, "chance", True),
    ],
)
def test_conclusions_are_plain_and_hold_against_the_hardest_control(changes, words, passed):
    made = result(**changes)
    assert words in made.conclusion and made.passed is passed
    assert made.conclusion in str(made)


def test_a_number_never_travels_alone():
    made = result(also=(Estimate("CNR", 1.25, 1.0, 1.5),))
    needed = ["0.800 (0.700 to 0.900)", "chance 0.500", "mean of all", "the test split", "plain", "95 %", "CNR 1.250"]
    for text in (str(made), re.sub("<[^>]*>", " ", made.to_html())):
        for part in needed:
            assert part in text
        assert re.search(r"seed\W+7", text)
    stored = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert stored["table"][1] == {"finding": "b<c", "AUROC": None, "present": 0}
    assert stored["controls"][0] == {"name": "chance", "value": 0.5, "low": None, "high": None}
    assert {"rule", "split", "prompts", "seed", "low", "high", "conclusion"} <= stored.keys()
    assert "b<c" not in made.to_html() and "b&lt;c" in made.to_html()
    with pytest.raises(KitError, match="no control"):
        result(controls=())


# side swap


def test_swapping_sides_is_its_own_inverse_and_keeps_the_rest():
    sentences = [s for f in SIDED for side in ("left", "right") for s in phrases(f, side=side)]
    sentences += ["Left-sided tube, RIGHT base.", "Derrame pleural izquierdo; base derecha. Ambas izquierdas."]
    for sentence in sentences:
        assert swap_sides(sentence) != sentence and swap_sides(swap_sides(sentence)) == sentence
    assert swap_sides("Left base, right apex, RIGHT.") == "Right base, left apex, LEFT."
    assert swap_sides("Derrame izquierdo.") == "Derrame derecho."
    assert swap_sides("Upright, bright, leftover.") == "Upright, bright, leftover."


def test_side_swap_tells_a_model_that_knows_sides_from_a_mirrored_one_and_a_blind_one():
    words = Words()
    data = Planted(60)
    sizes = TINY.but(test_studies=60)
    good = side_swap(Oracle(words), words, data, budget=sizes, kind="plain")
    assert good.value == 1.0 and good.passed
    assert good.n == len(list(one_sided(data))) == int((data.truth.sum(-1) == 1).sum())
    mirrored = side_swap(Oracle(words, mirrored=True), words, data, budget=sizes, kind="plain")
    assert mirrored.value == 0.0 and not mirrored.passed

    class Blind(Oracle):
        def similarity(self, image, text):
            return torch.zeros(len(image.pooled), len(text.pooled))

    blind = side_swap(Blind(words), words, data, budget=sizes, kind="plain")
    assert blind.value == 0.5 and not blind.passed  # ties count half


# evaluation


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    from medvlp_kit.pretrain import pretrain

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    sizes = TINY.but(train_studies=32, epochs=1)
    data = {"name": "phantoms", "size": 32, "seed": 0}
    pretrain("convirt", Phantoms(32), budget=sizes, out=folder, data=data, progress=False)
    return folder


def test_evaluating_a_run_writes_every_task_with_its_facts(run_folder, capsys):
    results = evaluate(run_folder)
    printed = capsys.readouterr().out
    assert [r.task for r in results] == [
        "zero-shot classification", "retrieval", "grounding", "side swap", "negation", "zone", "severity order",
        "crop consistency", "blank image",
    ]  # fmt: skip
    stored = json.loads((run_folder / "evaluation.json").read_text())
    page = (run_folder / "evaluation.html").read_text()
    assert len(stored["results"]) == len(TASKS)
    for one in results:
        assert "test split of phantoms, 20 studies" in one.split
        for text in (printed, re.sub("<[^>]*>", " ", page).replace("&#x27;", "'").replace("&gt;", ">")):
            assert one.conclusion in text and one.rule in text and one.prompts in text
    assert "Not for clinical use" in page and "http" not in page.replace("http-equiv", "")
    assert not list(run_folder.glob("*.partial"))
    assert list(results.table.columns[:4]) == ["metric", "value", "low", "high"]
    again = evaluate(run_folder, show=False)
    assert again.to_dict() == results.to_dict()
    assert capsys.readouterr().out == ""


def test_data_are_reopened_held_out_and_in_the_runs_own_world(run_folder):
    from medvlp_kit.pretrain import load_run

    run = load_run(run_folder)
    data = open_data(run)
    assert data.study(0).split == "train" and len(data) == TINY.test_studies  # of which `split` takes the test stream
    own = {data.study(i).report.text for i in range(len(data))}
    test = {data.split("test").study(i).report.text for i in range(len(data))}
    assert not own & test
    with pytest.raises(KitError, match="unknown data set"):
        open_data(run, "phantomz")
    with pytest.raises(KitError):
        open_data(run, "vqa-rad")  # a real data set needs its folder
    with pytest.raises(KitError, match="channels"):
        evaluate(run, data=Planted(20), show=False)


def test_what_the_data_do_not_allow_is_said_in_one_line(tmp_path):
    words = Words()
    exam = Examination(Oracle(words), words, Planted(20, boxes=False, sides=False), budget=TINY)
    results = examine(exam, title="planted")
    assert [r.task for r in results] == ["zero-shot classification", "retrieval", "negation", "blank image"]
    assert results.absent == {
        "grounding": "the data have no boxes in the frontal view",
        "side-swap": "the data say of no finding on which side it is",
        "zone": "the data have no finding in different zones",
        "severity-order": "the data have no finding in different grades of severity",
        "crop-consistency": "the data have no box that a part of the picture could hold or leave out",
    }
    assert "grounding: not possible, the data have no boxes" in str(results)
    assert "not possible" in write(results, tmp_path)[1].read_text()
    with pytest.raises(KitError, match="grounding is not possible on planted"):
        examine(exam, task="grounding")
    with pytest.raises(KitError, match="did you mean 'retrieval'"):
        examine(exam, task="retreival")


def test_a_folder_without_a_run_is_one_line(tmp_path):
    with pytest.raises(KitError, match="holds no run") as caught:
        evaluate(tmp_path)
    assert "\n" not in str(caught.value)
