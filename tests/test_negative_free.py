"""Losses without negatives against their formulas, what collapse looks like, and which side feels a gradient."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from medvlp_kit.budget import budget
from medvlp_kit.errors import KitError
from medvlp_kit.model import ForwardPass
from medvlp_kit.objectives.negative_free import (
    AlignOrthogonal,
    Expanded,
    SimSiam,
    alignment_loss,
    barlow_twins_loss,
    orthogonality_floor,
    orthogonality_loss,
    simsiam_loss,
    vicreg_loss,
)
from medvlp_kit.recipes import Recipe, build, get
from medvlp_kit.study import Batch, Tokens


def rows(count=7, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64).requires_grad_()


def same(fast, slow, values):
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(torch.autograd.grad(fast, values), torch.autograd.grad(slow, values))


def covariance(x, d, e):
    one, two = x[:, d] - x[:, d].mean(), x[:, e] - x[:, e].mean()
    return sum(a * b for a, b in zip(one, two)) / (len(x) - 1)


def test_vicreg_equals_its_formula():
    one, two = rows(), rows(seed=1)
    total = 25.0 * sum((one[i, d] - two[i, d]) ** 2 for i in range(7) for d in range(4)) / 28
    for x in (one, two):
        for d in range(4):
            total = total + 25.0 * torch.relu(1 - torch.sqrt(covariance(x, d, d) + 1e-4)) / 4 / 2
            total = total + sum(covariance(x, d, e) ** 2 for e in range(4) if e != d) / 4
    same(vicreg_loss(one, two), total, (one, two))


def test_barlow_twins_equals_its_formula():
    one, two = rows(), rows(seed=1)
    total = 0.0
    for d in range(4):
        for e in range(4):
            a, b = one[:, d] - one[:, d].mean(), two[:, e] - two[:, e].mean()
            a, b = a / torch.sqrt((a**2).mean() + 1e-5), b / torch.sqrt((b**2).mean() + 1e-5)
            c = (a * b).mean()
            total = total + ((1 - c) ** 2 if d == e else 0.0051 * c**2)
    same(barlow_twins_loss(one, two), total, (one, two))


def test_simsiam_and_alignment_equal_their_formulas():
    guess_one, guess_two, one, two = (rows(seed=s) for s in range(4))
    cosine = lambda a, b: a @ b / (a.norm() * b.norm())  # noqa: E731
    total = -sum(cosine(p, z.detach()) + cosine(q, y.detach()) for p, q, y, z in zip(guess_one, guess_two, one, two)) / 14
    same(simsiam_loss(guess_one, guess_two, one, two), total, (guess_one, guess_two))
    assert torch.autograd.grad(simsiam_loss(guess_one, guess_two, one, two), one, allow_unused=True)[0] is None
    aligned = sum((a / a.norm() - b / b.norm()).square().sum() for a, b in zip(one, two)) / 7
    same(alignment_loss(one, two), aligned, (one, two))


@pytest.mark.parametrize("form", ["paper", "released"])
@pytest.mark.parametrize("off_diagonal", [None, 0.3])
def test_orthogonality_equals_its_formula(form, off_diagonal):
    features, total = rows(), 0.0
    weight = off_diagonal or {"paper": 1.0, "released": 0.0051}[form]
    for d in range(4):
        for e in range(4):
            a, b = features[:, d], features[:, e]
            c = a @ b / (a.norm() * b.norm()) if form == "paper" else a @ b / 7
            total = total + ((c - 1) ** 2 if d == e else weight * c**2)
    same(orthogonality_loss(features, form=form, off_diagonal=off_diagonal), total if form == "paper" else total / 2, (features,))


@pytest.mark.parametrize("batch, width", [(8, 12), (4, 16), (16, 16), (32, 8)])
def test_orthogonality_reaches_its_floor_and_not_below(batch, width):
    features = torch.randn(batch, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.LBFGS([features], max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        loss = orthogonality_loss(features)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert orthogonality_loss(features).item() == pytest.approx(orthogonality_floor(batch, width), rel=1e-4, abs=1e-4)


def test_the_published_size_cannot_reach_zero():
    assert orthogonality_floor(512, 2048, form="released") == pytest.approx(0.0051 / 2 * 6144)  # 15.7


def test_collapse_is_expensive_where_it_should_be():
    constant = torch.ones(16, 4) + 1e-6 * torch.randn(16, 4)
    spread = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    assert alignment_loss(constant, constant) < 1e-6  # alignment alone is content
    assert vicreg_loss(constant, constant) > 24 > 10 > vicreg_loss(spread, spread)


@pytest.mark.parametrize("loss", [vicreg_loss, barlow_twins_loss, alignment_loss])
def test_a_permutation_of_the_pairs_changes_nothing(loss):
    one, two, order = rows(), rows(seed=1), torch.tensor([3, 1, 0, 6, 2, 5, 4])
    torch.testing.assert_close(loss(one[order], two[order]), loss(one, two))


def batch(count=8):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 60, (count, 9), generator=generator)
    tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
    images = torch.rand(count, 1, 32, 32, generator=generator)
    return Batch(tuple(range(count)), {"frontal": images}, {"report": tokens}, ("",) * count, torch.zeros(count, 0))


OBJECTIVES = {
    "vicreg": lambda model: Expanded(model.embedding_width),
    "barlow": lambda model: Expanded(model.embedding_width, "barlow", off_diagonal=0.01),
    "simsiam": lambda model: SimSiam(model.embedding_width),
    "m-flag": AlignOrthogonal,
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_objective_trains_and_m_flag_leaves_the_text_alone(name):
    torch.manual_seed(0)
    sizes = budget("tiny").but(image_model="kit_vit")
    built = build(Recipe(**{**vars(get("clip")), "objective": OBJECTIVES[name]}), budget=sizes, vocabulary_size=60)
    output = built.objective(ForwardPass(built.model, batch()))
    output.loss.backward()
    assert torch.isfinite(output.loss) and 0 < output.logs["image dimensions"] <= 7.01
    touched = {part: any(p.grad is not None and p.grad.abs().max() > 0 for p in getattr(built.model, part).parameters())
               for part in ("image_encoder", "text_encoder", "text_projection")}  # fmt: skip
    frozen = name == "m-flag"
    assert touched == {"image_encoder": True, "text_encoder": not frozen, "text_projection": not frozen}
    if frozen:
        assert output.logs["floor"] >= 0 and output.logs["orthogonality"] >= output.logs["floor"] - 1e-3


def train(objective, seed, steps=250):
    """Two linear heads on two noisy views of 64 hidden vectors: loss and logs at the end."""
    torch.manual_seed(seed)
    hidden = torch.randn(64, 16)
    inputs = [hidden + 0.7 * torch.randn(64, 16) for _ in range(2)]
    heads, objective = [torch.nn.Linear(16, 8) for _ in range(2)], objective()
    optimizer = torch.optim.Adam([p for module in (*heads, objective) for p in module.parameters()], lr=1e-2)
    for _ in range(steps):
        image, text = (F.normalize(head(x), dim=1) for head, x in zip(heads, inputs))
        output = objective(SimpleNamespace(image_embedding=image, text_embedding=text))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    return output.loss.item(), {name: value.item() for name, value in output.logs.items()}


CHANCE = 1 / 64


@pytest.mark.parametrize("name, objective", [
    ("vicreg", lambda: Expanded(8, hidden=32, out=32)),
    ("barlow", lambda: Expanded(8, "barlow", hidden=32, out=32)),
    ("simsiam", lambda: SimSiam(8)),
])  # fmt: skip
def test_embeddings_come_together_without_collapsing(name, objective):
    for seed in range(2):
        _, logs = train(objective, seed)
        assert logs["batch accuracy"] > 5 * CHANCE and logs["image dimensions"] > 1.9


def test_a_published_simsiam_head_translates_between_spaces_that_never_meet():
    found = [train(lambda: SimSiam(8, residual=False), seed) for seed in range(3)]
    assert all(loss < -0.6 for loss, _ in found)  # it looks learned
    assert sum(logs["batch accuracy"] for _, logs in found) / 3 < 4 * CHANCE


@pytest.mark.parametrize("wrong", [
    lambda: vicreg_loss(torch.ones(1, 3), torch.ones(1, 3)),
    lambda: barlow_twins_loss(torch.ones(4, 3), torch.ones(4, 2)),
    lambda: alignment_loss(torch.ones(4), torch.ones(4)),
    lambda: orthogonality_loss(torch.ones(4)),
    lambda: orthogonality_loss(torch.ones(4, 2), form="code"),
    lambda: Expanded(4, "vikreg"),
    lambda: AlignOrthogonal(None, form="code"),
])  # fmt: skip
def test_wrong_arguments_are_one_line(wrong):
    with pytest.raises(KitError) as caught:
        wrong()
    assert "\n" not in str(caught.value)
