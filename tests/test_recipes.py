"""Every recipe trains, is saved and read back, and scores images against texts with the scorer it was trained for."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from medvlp_kit import recipes
from medvlp_kit.budget import budget
from medvlp_kit.collate import collate
from medvlp_kit.downstream.encode import randomised
from medvlp_kit.errors import KitError
from medvlp_kit.model import ForwardPass
from medvlp_kit.objectives.vocabulary import read_tokenizer
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.pretrain import load_run, pretrain
from medvlp_kit.text import ReportTokenizer

NAMES = recipes.names()
TINY = budget("tiny")


@pytest.fixture(scope="module")
def phantoms() -> Phantoms:
    return Phantoms(48, seed=5)


@pytest.fixture(scope="module")
def tokenizer(phantoms) -> ReportTokenizer:
    return ReportTokenizer.train([phantoms.report(i).text for i in range(48)], vocabulary_size=TINY.vocabulary_size)


def build(name, tokenizer, seed=0):
    torch.manual_seed(seed)
    built = recipes.build(name, budget=TINY, vocabulary_size=tokenizer.vocabulary_size)
    read_tokenizer(built.objective, tokenizer)
    return built


def batch_of(recipe, phantoms, tokenizer, indices):
    return collate(
        phantoms, indices, tokenizer=tokenizer, image_size=TINY.image_size, text_length=TINY.text_length,
        views=recipe.views, texts=recipe.texts, findings=recipe.findings,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_loss_of_a_few_studies_falls(name, phantoms, tokenizer):
    built = build(name, tokenizer)
    batch = batch_of(built.recipe, phantoms, tokenizer, range(16))
    parameters = [*built.model.parameters(), *built.objective.parameters()]
    optimizer = torch.optim.AdamW({id(p): p for p in parameters if p.requires_grad}.values(), lr=2e-3)

    def mean_loss() -> float:
        """Over several draws of masks and negatives, without learning."""
        torch.manual_seed(1)
        with torch.no_grad():
            return sum(float(built.objective(ForwardPass(built.model, batch)).loss) for _ in range(4)) / 4

    before = mean_loss()
    for step in range(25):
        torch.manual_seed(100 + step)
        loss = built.objective(ForwardPass(built.model, batch)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = mean_loss()
    assert math.isfinite(before) and after < before - 0.05 * abs(before), (before, after)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_read_back_and_scores_as_before(name, tmp_path, phantoms):
    sizes = TINY.but(train_studies=16, batch_size=8, epochs=1)
    run = pretrain(name, phantoms.subset(range(16)), budget=sizes, out=tmp_path / "run", progress=False)
    again = load_run(tmp_path / "run", recipe=name)
    batch = batch_of(run.recipe, phantoms, run.tokenizer, range(20, 26))

    def scores(model) -> torch.Tensor:
        with torch.no_grad():
            return model.similarity(model.encode_image(batch.images[:4]), model.encode_text(batch.tokens))  # (4, 6)

    expected = scores(run.model)
    assert expected.shape == (4, 6) and expected.isfinite().all()
    torch.testing.assert_close(scores(again.model), expected)
    assert not torch.allclose(scores(randomised(run.model, seed=3).eval()), expected), "the control must not share weights"


@pytest.mark.parametrize("name", ["medvill", "m3ae"])
def test_cross_encoders_rank_by_their_matching_head(name, phantoms, tokenizer):
    built = build(name, tokenizer)
    built.model.eval()
    batch = batch_of(built.recipe, phantoms, tokenizer, range(6))
    matching = built.objective.parts["matching"]
    with torch.no_grad():
        image, text = built.model.encode_image(batch.images), built.model.encode_text(batch.tokens)
        table = built.model.similarity(image, text)  # (6, 6)
        alone = matching.score(built.model.fuse(image, text))  # (6,) of the true pairs
        torch.testing.assert_close(table.diagonal(), alone, atol=1e-5, rtol=1e-4)
        few = matching.scorer()
        few.pairs = 5  # pieces that end in the middle of a row
        torch.testing.assert_close(few(built.model, image, text), table, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_is(name):
    recipe = recipes.get(name)
    assert recipe.title and recipe.idea and recipe.objectives and 2010 < recipe.year < 2030
    assert "(" in recipe.paper, "say where it was published"
    family = inspect.getsource(inspect.getmodule(recipe.objective)).split("register(\n")
    assert max(len(part.splitlines()) for part in family) <= 32, "a recipe is read at one glance"


def test_one_name_once():
    with pytest.raises(KitError, match="rename one"):
        recipes.register(recipes.get("clip"))
