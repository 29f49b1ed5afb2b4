"""Entity queries: what counts as stated, the losses against loops, and answers that come from the image."""

import math
from collections import Counter

import pytest
import torch

from medvlp_kit import recipes
from medvlp_kit.budget import budget
from medvlp_kit.collate import collate
from medvlp_kit.errors import KitError
from medvlp_kit.model import ForwardPass
from medvlp_kit.objectives.knowledge import (
    DESCRIPTIONS,
    IGNORED,
    PLACES,
    EntityQueries,
    describe_place,
    entity_targets,
    existence_loss,
    place_loss,
)
from medvlp_kit.objectives.vocabulary import read_tokenizer
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.phantoms.scene import FINDINGS
from medvlp_kit.recipes import Recipe
from medvlp_kit.schedule import build_optimizer
from medvlp_kit.study import ABSENT, PRESENT, UNCERTAIN, Finding
from medvlp_kit.text import ReportTokenizer

TINY = budget("tiny").but(text_length=32, image_model="kit_resnet10")
STUDIES = 16


@pytest.fixture(scope="module")
def phantoms():
    return Phantoms(STUDIES, seed=1, image_size=TINY.image_size)


@pytest.fixture(scope="module")
def tokenizer(phantoms):
    return ReportTokenizer.train([phantoms.report(i).text for i in range(STUDIES)], vocabulary_size=300)


@pytest.fixture(scope="module")
def batch(phantoms, tokenizer):
    return collate(
        phantoms, range(STUDIES), tokenizer=tokenizer, image_size=TINY.image_size, text_length=32, findings=True
    )


def build(tokenizer=None, *, pooling="mean", **options):
    torch.manual_seed(0)
    recipe = Recipe(
        name="queries", title="", paper="", year=0, idea="", objectives=(),
        objective=lambda model: EntityQueries(model, **options), text_options={"pooling": pooling},
    )  # fmt: skip
    built = recipes.build(recipe, budget=TINY, vocabulary_size=300)
    if tokenizer is not None:
        read_tokenizer(built.objective, tokenizer)
    return built


def test_findings_travel_in_the_batch_only_when_asked_for(phantoms, tokenizer, batch):
    plain = collate(phantoms, range(3), tokenizer=tokenizer, image_size=32, text_length=16)
    assert plain.findings == ()
    assert batch.findings == tuple(phantoms.findings(i) for i in range(STUDIES))
    assert batch.to("cpu").findings == batch.findings


def test_targets_are_what_is_stated():
    studies = [
        [Finding("Pneumothorax", PRESENT, "left", "upper"), Finding("Edema", UNCERTAIN)],
        [Finding("Pneumothorax", ABSENT), Finding("Consolidation", PRESENT, "left", "lower"),
         Finding("Consolidation", PRESENT, "right", "lower"), Finding("Cardiomegaly", PRESENT)],
        [Finding("Edema", UNCERTAIN), Finding("Edema", ABSENT), Finding("Fracture", PRESENT, "right", "upper"),
         Finding("Fracture", PRESENT, "right", "lower"), Finding("Fracture", ABSENT, "left"), Finding("Zebra", PRESENT)],
        [],
    ]  # fmt: skip
    names = ("Pneumothorax", "Edema", "Consolidation", "Cardiomegaly", "Fracture")
    targets = entity_targets(studies, names)
    nan = math.nan
    expected = [[1, nan, 0, 0, 0], [0, 0, 1, 1, 0], [0, nan, 0, 0, 1], [0, 0, 0, 0, 0]]
    torch.testing.assert_close(targets.existence, torch.tensor(expected), equal_nan=True)
    places = {(0, 0): ("left", "upper"), (1, 2): ("bilateral", "lower"), (2, 4): ("right", None)}
    for row in range(4):
        for column in range(5):
            known = places.get((row, column))  # cardiomegaly has no place, absent and uncertain entities have none
            assert int(targets.place[row, column]) == (PLACES.index(known) if known else IGNORED)
    silent = entity_targets(studies, names, unmentioned=nan)
    assert silent.existence[3].isnan().all() and float(silent.existence[1, 0]) == 0


def test_targets_of_phantoms_agree_with_their_labels(phantoms, batch):
    """Labels count a possible sign as present; targets do not ask for it."""
    targets = entity_targets(batch.findings)
    sure = ~targets.existence.isnan()
    assert torch.equal(targets.existence[sure], batch.labels[sure])
    assert (batch.labels[~sure] == 1).all()
    assert FINDINGS == tuple(DESCRIPTIONS)
    for row in range(STUDIES):
        for sign in phantoms.scene(row).signs:
            if sign.certainty == "definite" and (sign.side, sign.zone) != (None, None):
                assert PLACES[int(targets.place[row, FINDINGS.index(sign.finding)])] == (sign.side, sign.zone)


def test_places_are_side_times_zone_and_each_is_worded_differently():
    assert len(PLACES) == 15 and len({describe_place(place) for place in PLACES}) == 15
    assert describe_place(("bilateral", "lower")) == "located in both lower zones"
    assert describe_place(("left", None)) == "located in the left lung"


def test_losses_equal_their_formulas_forward_and_backward():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    existence = torch.tensor([[1, 0, math.nan, 0], [math.nan] * 4, [0, 1, 1, math.nan]], dtype=torch.float64)
    slow, count = 0.0, 0
    for b in range(3):
        for e in range(4):
            if not math.isnan(existence[b, e]):
                probability = 1 / (1 + torch.exp(-logits[b, e]))
                slow = slow - torch.log(probability if existence[b, e] else 1 - probability)
                count += 1
    fast = existence_loss(logits, existence)
    torch.testing.assert_close(fast, slow / count)
    gradient = torch.autograd.grad(fast, logits)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(slow / count, logits)[0])
    assert (gradient[existence.isnan()] == 0).all()

    scores = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    place = torch.tensor([[4, IGNORED, 0], [IGNORED, IGNORED, 2]])
    slow = sum(-scores[b, e].log_softmax(0)[place[b, e]] for b in range(2) for e in range(3) if place[b, e] >= 0) / 3
    fast = place_loss(scores, place)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(torch.autograd.grad(fast, scores)[0], torch.autograd.grad(slow, scores)[0])
    nothing = place_loss(scores, torch.full((2, 3), IGNORED)) + existence_loss(logits, torch.full((3, 4), math.nan))
    assert float(nothing.detach()) == 0


def test_starts_at_chance_and_learns_what_is_where(batch, tokenizer):
    built = build(tokenizer)
    both = torch.nn.ModuleList([built.model, built.objective]).train()
    optimizer = build_optimizer(both)
    torch.manual_seed(1)
    logs = []
    for step in range(60):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 10)
        output = built.objective(ForwardPass(built.model, batch))
        optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        logs.append({name: float(value) for name, value in output.logs.items()})
    assert abs(logs[0]["existence"] - math.log(2)) < 0.05 and abs(logs[0]["place"] - math.log(15)) < 0.4
    targets = entity_targets(batch.findings)
    # without the image the best answers are the share of each entity and its commonest place
    share = targets.existence.nanmean(dim=0).clamp(1e-6, 1 - 1e-6)
    blind = float(existence_loss(torch.logit(share).expand(STUDIES, -1), targets.existence))
    columns = [column[column >= 0].tolist() for column in targets.place.T]
    blind_places = sum(max(Counter(column).values(), default=0) for column in columns) / sum(map(len, columns))
    assert logs[-1]["existence"] < 0.5 * blind, (logs[-1], blind)
    assert blind_places < 0.8 and logs[-1]["places found"] > blind_places + 0.1, (logs[-1], blind_places)


def test_the_class_token_of_an_untrained_encoder_makes_all_queries_alike(tokenizer):
    """Why descriptions are pooled by their mean."""
    alike = {}
    for pooling in ("cls", "mean"):
        built = build(tokenizer, pooling=pooling)
        queries = torch.nn.functional.normalize(built.objective.queries(built.model.eval()).detach(), dim=-1)
        alike[pooling] = float((queries @ queries.T).mean())
    assert alike["cls"] > 0.999 > 0.99 > alike["mean"]


def test_the_order_of_images_and_of_entities_changes_nothing(batch, tokenizer):
    built = build(tokenizer)
    built.model.eval()
    image = built.model.encode_image(batch.images)
    exists, places = built.objective.predict(built.model, image)
    order = torch.randperm(STUDIES, generator=torch.Generator().manual_seed(0))
    mixed = built.model.encode_image(batch.images[order])
    torch.testing.assert_close(built.objective.predict(built.model, mixed)[0], exists[order], atol=1e-5, rtol=1e-4)
    names = list(DESCRIPTIONS)[::-1]
    other = build(tokenizer, entities={name: DESCRIPTIONS[name] for name in names})
    buffers = ("query_ids", "query_mask")
    other.model.load_state_dict(built.model.state_dict())
    own = {k: v for k, v in built.objective.state_dict().items() if k not in buffers}
    other.objective.load_state_dict(own, strict=False)
    turned = other.objective.predict(other.model.eval(), image)
    torch.testing.assert_close(turned[0], exists.flip(1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(turned[1], places.flip(1), atol=1e-5, rtol=1e-4)


def test_asking_in_words_gives_the_trained_answer_and_takes_new_words(batch, tokenizer):
    built = build(tokenizer)
    built.model.eval()
    image = built.model.encode_image(batch.images)
    asked = built.objective.ask(built.model, image, ["cavity in the left lung", "cardiomegaly"], tokenizer)
    alone = built.objective.ask(built.model, image, ["cardiomegaly"], tokenizer)
    assert asked.shape == (STUDIES, 2)
    torch.testing.assert_close(asked[:, 1:], alone, atol=1e-5, rtol=1e-4)  # no query hears of another new one


def test_queries_come_back_from_a_checkpoint_without_the_tokenizer(batch, tokenizer):
    built, fresh = build(tokenizer), build()
    built.model.eval(), fresh.model.eval()
    with pytest.raises(KitError, match="read_tokenizer"):
        fresh.objective(ForwardPass(fresh.model, batch))
    fresh.objective.load_state_dict(built.objective.state_dict())
    first, second = (each.objective(ForwardPass(each.model, batch)).loss for each in (built, fresh))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("train_text", [True, False])
def test_the_text_encoder_learns_only_where_it_should(train_text, batch, tokenizer):
    built = build(tokenizer, train_text=train_text)
    built.objective(ForwardPass(built.model, batch)).loss.backward()
    learns = any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in built.model.text_encoder.parameters())
    assert learns == train_text
    assert all(p.grad is not None for p in built.objective.parameters())


def test_a_batch_without_findings_is_one_line(phantoms, tokenizer):
    built = build(tokenizer)
    plain = collate(phantoms, range(3), tokenizer=tokenizer, image_size=32, text_length=16)
    with pytest.raises(KitError) as caught:
        built.objective(ForwardPass(built.model, plain))
    assert "findings=True" in str(caught.value) and "\n" not in str(caught.value)


def test_views_at_another_size_are_named_by_their_factor(phantoms, tokenizer):
    views = ("frontal", "frontal x2")
    found = collate(phantoms, range(2), tokenizer=tokenizer, image_size=32, text_length=16, views=views).views
    assert {name: tuple(view.shape[-2:]) for name, view in found.items()} == {"frontal": (32, 32), "frontal x2": (64, 64)}
    torch.testing.assert_close(found["frontal x2"], phantoms.images([0, 1], size=64))
    with pytest.raises(KitError, match="whole number"):
        collate(phantoms, range(2), tokenizer=tokenizer, image_size=32, text_length=16, views=("frontal xl",))
