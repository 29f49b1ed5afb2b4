"""Balancing a hybrid: gradients measured rightly, weights that follow their formulas, and runs that resume to the bit."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from medvlp_kit.budget import budget
from medvlp_kit.encoders.image import build_image_encoder
from medvlp_kit.encoders.text import build_text_encoder
from medvlp_kit.errors import KitError
from medvlp_kit.model import ForwardPass, VisionLanguageModel
from medvlp_kit.objectives import Objective, ObjectiveOutput, WeightedSum
from medvlp_kit.objectives.balance import GradientNorm, Scheduled, Uncertainty
from medvlp_kit.objectives.contrastive import InfoNCE
from medvlp_kit.objectives.gradients import GradientWatch, gradient_geometry, last_matrices
from medvlp_kit.objectives.prototypes import PrototypeAlignment
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.pretrain import pretrain
from medvlp_kit.recipes import Recipe
from medvlp_kit.study import Batch, Tokens


class Pull(Objective):
    """A loss that is a plain function of the model's one parameter."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, forward_pass):
        return ObjectiveOutput(self.function(forward_pass.model.weight), {})


def one_parameter(values=(1.0, 2.0)):
    return SimpleNamespace(model=SimpleNamespace(weight=nn.Parameter(torch.tensor(values))))


def shared(forward_pass):
    return [forward_pass.model.weight]


A, B, C = (lambda w: 3 * w[0] + 4 * w[1] + 10), (lambda w: -2 * w[0] + 9), (lambda w: torch.tensor(1.0))


def test_gradient_geometry_is_that_of_the_gradients():
    given = one_parameter()
    weight = given.model.weight
    losses = [A(weight), B(weight), C(weight)]
    norms, cosines = gradient_geometry(losses, [weight])
    torch.testing.assert_close(norms, torch.tensor([5.0, 2.0, 0.0]))
    torch.testing.assert_close(cosines, torch.tensor([[1.0, -0.6, 0.0], [-0.6, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    (losses[0] + losses[1]).backward()  # the graph is still there, and nothing was left in .grad
    assert weight.grad.tolist() == [1.0, 4.0]


def test_a_plain_sum_is_as_before_and_logs_no_weights():
    given = one_parameter()
    output = WeightedSum({"a": Pull(A), "b": Pull(B)}, {"b": 0.5})(given)
    assert output.loss.item() == 21 + 0.5 * 7 and set(output.logs) == {"a", "b"}
    assert not WeightedSum({"a": Pull(A)}).state_dict()


def test_the_watch_measures_every_so_many_training_steps_and_keeps_the_last():
    hybrid = WeightedSum({"a": Pull(A), "b": Pull(lambda w: (w**2).sum())}, watch=3, shared=shared)
    seen = []
    for step in range(7):
        given = one_parameter((1.0 + step, 0.0))
        logs = hybrid(given).logs
        seen.append((logs["gradient/a"].item(), logs["gradient/b"].item(), round(logs["cosine/a, b"].item(), 5)))
    assert seen == [(5.0, 2.0, 0.6)] * 3 + [(5.0, 8.0, 0.6)] * 3 + [(5.0, 14.0, 0.6)]
    before = {name: value.clone() for name, value in hybrid.state_dict().items()}
    hybrid.eval()(one_parameter((50.0, 0.0)))
    hybrid.train()
    with torch.no_grad():
        hybrid(one_parameter((50.0, 0.0)))
    assert all(torch.equal(before[name], value) for name, value in hybrid.state_dict().items())
    again = WeightedSum({"a": Pull(A), "b": Pull(lambda w: (w**2).sum())}, watch=3, shared=shared)
    again(one_parameter())  # its own count begins, and the loaded one must win
    again.load_state_dict(hybrid.state_dict())
    for step in range(7, 10):
        one, two = (x(one_parameter((1.0 + step, 0.0))).logs for x in (hybrid, again))
        assert one == two
    assert one["gradient/b"].item() == 20.0


def test_a_schedule_ramps_and_stays_level():
    make = partial(Scheduled, schedule={"b": ((2, 0.0), (4, 1.0), (5, 3.0))})
    hybrid = WeightedSum({"a": Pull(A), "b": Pull(B)}, {"b": 2.0}, balance=make)
    for step, expected in enumerate([0, 0, 0, 0.5, 1, 3, 3, 3]):
        output = hybrid(one_parameter())
        assert output.logs["weight/b"].item() == expected and output.logs["weight/a"].item() == 1
        assert output.loss.item() == pytest.approx(21 + expected * 2 * 7)
    hybrid.eval()(one_parameter())
    assert int(hybrid.balance.step) == 8


def test_uncertainty_settles_where_each_loss_counts_one():
    """d/ds (exp(-s) L + s) = 0 where exp(-s) = 1 / L."""
    hybrid = WeightedSum({"a": Pull(A), "b": Pull(B)}, balance=Uncertainty)
    first = hybrid(one_parameter())
    assert first.loss.item() == 28.0 and first.logs["weight/a"].item() == 1.0
    optimizer = torch.optim.Adam(hybrid.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        output = hybrid(one_parameter())
        output.loss.backward()
        optimizer.step()
    assert output.logs["weight/a"].item() == pytest.approx(1 / 21, rel=1e-2)
    assert output.loss.item() == pytest.approx(2 + math.log(21) + math.log(7), rel=1e-3)


def test_gradient_norms_become_equal():
    parts = {"a": Pull(A), "b": Pull(B), "none": Pull(C)}
    hybrid = WeightedSum(parts, {"b": 0.01}, balance=GradientNorm, shared=shared)
    assert hybrid.watch.every == 10  # it cannot do without
    given = one_parameter()
    output = hybrid(given)
    weights = [output.logs[f"weight/{name}"].item() for name in parts]
    assert weights[0] * 5 == pytest.approx(weights[1] * 0.02) and weights[0] + weights[1] == pytest.approx(2)
    assert weights[2] == 1
    output.loss.backward()
    expected = weights[0] * torch.tensor([3.0, 4.0]) + 0.01 * weights[1] * torch.tensor([-2.0, 0.0])
    torch.testing.assert_close(given.model.weight.grad, expected)


def test_gradient_norm_follows_the_pace_and_remembers():
    balance = GradientNorm(("a", "b"), alpha=1.0, memory=0.5)
    balance.adapt(torch.tensor([4.0, 4.0]), torch.tensor([1.0, 1.0]))
    assert balance.weights().tolist() == [1.0, 1.0]
    balance.adapt(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))  # b has come a third as far down: three times the pull
    torch.testing.assert_close(balance.weights(), torch.tensor([0.75, 1.25]))


@pytest.mark.parametrize("image", ["resnet10t", "kit_resnet10", "kit_vit"])
@pytest.mark.parametrize("text", ["bert", "kit_bert", "gpt2"])
def test_the_last_matrices_lie_on_the_way_to_the_losses(image, text):
    torch.manual_seed(0)
    model = VisionLanguageModel(
        build_image_encoder(image, image_size=32),
        build_text_encoder(text, vocabulary_size=20, width=16, layers=1, heads=2, length=6, pooling="mean"), embedding_width=8,
    )  # fmt: skip
    ids = torch.randint(5, 20, (4, 6))
    batch = Batch((0, 1, 2, 3), {"frontal": torch.rand(4, 1, 32, 32)}, {"report": Tokens(ids, ids > 0)}, (), torch.zeros(4, 1))
    given = ForwardPass(model, batch)
    loss = InfoNCE()(given).loss
    for matrix in last_matrices(given):
        assert gradient_geometry([loss], [matrix])[0].item() > 0
    model.requires_grad_(False)
    with pytest.raises(KitError, match="frozen"):
        last_matrices(given)


@pytest.mark.parametrize("function, words", [
    (lambda: Scheduled(("a",), {"b": ((0, 1.0),)}), "'b'"),
    (lambda: Scheduled(("a",), {"a": ((3, 1.0), (3, 2.0))}), "rising"),
    (lambda: Scheduled(("a",), {"a": ()}), "at least one"),
    (lambda: GradientNorm(("a",), memory=1.0), "memory"),
    (lambda: GradientWatch(("a",), every=0), "every 0"),
])  # fmt: skip
def test_wrong_arguments_are_one_line(function, words):
    with pytest.raises(KitError, match=words) as caught:
        function()
    assert "\n" not in str(caught.value)


def hybrid_of(balance):
    def make(model):
        parts = {"contrastive": InfoNCE(), "prototypes": PrototypeAlignment(model.embedding_width, count=8, frozen_steps=3)}
        return WeightedSum(parts, balance=balance, watch=2)

    return make


BALANCES = {
    "scheduled": partial(Scheduled, schedule={"prototypes": ((1, 0.0), (6, 1.0))}),
    "uncertainty": Uncertainty,
    "gradient-norm": partial(GradientNorm, alpha=0.5),
}


def recipe(name):
    return Recipe(
        name=f"balance-{name}", title=name, paper="", year=2024, idea="", objectives=(), objective=hybrid_of(BALANCES[name]),
        text_options={"pooling": "mean"}, model_options={"projection_kind": "linear"},
    )  # fmt: skip


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("name", BALANCES)
def test_a_balanced_hybrid_resumes_to_the_same_bits(name, tmp_path):
    sizes, phantoms = budget("tiny").but(train_studies=32, epochs=4), Phantoms(32, seed=0, image_size=32)  # 8 steps
    options = dict(budget=sizes, progress=False, checkpoint_every=3, log_every=1)
    whole = pretrain(recipe(name), phantoms, out=tmp_path / "whole", **options)

    def stop(row):
        if row["step"] == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        pretrain(recipe(name), phantoms, out=tmp_path / "cut", on_log=stop, **options)
    resumed = pretrain(recipe(name), phantoms, out=tmp_path / "cut", resume=True, **options)
    one, two = (load_file(run.folder / "model.safetensors") for run in (whole, resumed))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    columns = [c for c in whole.history if c.startswith(("weight/", "gradient/", "cosine/", "loss"))]
    assert len(columns) == 6 and whole.history[columns].equals(resumed.history[columns])
    assert whole.history["weight/prototypes"].nunique() > 1 and (whole.history["gradient/contrastive"] > 0).all()
