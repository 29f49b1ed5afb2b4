"""The momentum teacher and its queue: the average, the order of the queue, the loss, and that all of it is resumed."""

import math
from collections import deque

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from medvlp_kit.budget import budget
from medvlp_kit.errors import KitError
from medvlp_kit.model import ForwardPass
from medvlp_kit.objectives.contrastive import info_nce
from medvlp_kit.objectives.gradient_cache import ChunkedForwardPass
from medvlp_kit.objectives.momentum import MomentumContrast, MomentumQueue, MomentumTeacher, momentum_contrast
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.pretrain import pretrain
from medvlp_kit.recipes import Recipe, build, get
from medvlp_kit.study import Batch, Tokens

TINY = budget("tiny").but(image_model="kit_vit", train_studies=48, batch_size=16)


def unit(count, width=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, generator=generator, dtype=dtype), dim=-1)


def batch(count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 60, (count, 9), generator=generator)
    tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
    images = torch.rand(count, 1, 32, 32, generator=generator)
    return Batch(tuple(range(count)), {"frontal": images}, {"report": tokens}, ("",) * count, torch.zeros(count, 0))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build("clip", budget=TINY, vocabulary_size=60).model


def textbook(image, text, image_keys, text_keys, temperature, alpha, allowed):
    total, count = 0.0, len(image)
    for asks, teacher, keys in [(image, image_keys, text_keys), (text, text_keys, image_keys)]:
        for i in range(count):
            places = [j for j in range(len(keys)) if allowed[j]]
            below = sum(torch.exp(asks[i] @ keys[j] / temperature) for j in places)
            opinions = sum(torch.exp(teacher[i] @ keys[j] / temperature) for j in places)
            for j in places:
                opinion = torch.exp(teacher[i] @ keys[j] / temperature) / opinions
                wanted = (alpha * opinion).detach() + (1 - alpha) * (i == j)
                total = total - wanted * torch.log(torch.exp(asks[i] @ keys[j] / temperature) / below) / (2 * count)
    return total


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("queued", [0, 5])
def test_the_loss_equals_its_formula_forward_and_backward(alpha, queued):
    image, text = unit(4).requires_grad_(), unit(4, seed=1).requires_grad_()
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    image_keys, text_keys = unit(4 + queued, seed=2).requires_grad_(), unit(4 + queued, seed=3)
    allowed = torch.ones(4 + queued, dtype=torch.bool)
    allowed[6:8] = False
    options = dict(temperature=temperature, alpha=alpha)
    fast = momentum_contrast(image, text, image_keys, text_keys, allowed=allowed, **options)
    slow = textbook(image, text, image_keys, text_keys, **options, allowed=allowed)
    torch.testing.assert_close(fast, slow)
    values = (image, text, temperature)
    # the teacher's opinion is a fixed target, also as a function of the temperature
    ours, theirs = (torch.autograd.grad(x, values, retain_graph=True) for x in (fast, slow))
    torch.testing.assert_close(ours, theirs)
    assert torch.autograd.grad(fast, image_keys, allow_unused=True)[0] is None


def test_without_queue_and_opinion_it_is_info_nce_against_the_teacher():
    image, text = unit(5), unit(5, seed=1)
    found = momentum_contrast(image, text, image, text, temperature=0.2)
    torch.testing.assert_close(found, info_nce(image, text, temperature=0.2))


def test_starts_near_the_logarithm_of_the_keys_that_are_there():
    image, text, more = unit(64, 512), unit(64, 512, seed=1), unit(192, 512, seed=2)
    allowed = torch.arange(256) < 128
    options = dict(temperature=1.0, allowed=allowed)
    found = momentum_contrast(image, text, torch.cat([image, more]), torch.cat([text, more]), **options)
    assert abs(found.item() - math.log(128)) < 0.02


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_the_queue_keeps_the_last_pairs_whatever_the_sizes(size, batches):
    queue, expected, number = MomentumQueue(1, size), deque(maxlen=size), 1.0
    for count in batches:
        rows = torch.arange(number, number + count)[:, None]
        queue.put(rows, -rows)
        expected.extend(rows.flatten().tolist())
        number += count
    kept = queue.image[queue.filled()].flatten()
    assert sorted(kept.tolist()) == sorted(expected)
    assert torch.equal(queue.text, -queue.image) and int(queue.count) == sum(batches)


def test_the_teacher_is_a_moving_average_that_moves_once_a_step_and_in_training_only(model):
    teacher = MomentumTeacher(model, momentum=0.9).train()
    with torch.no_grad():
        for parameter in teacher.model.parameters():
            parameter.add_(1.0)
    before = [parameter.clone() for parameter in teacher.model.parameters()]
    forward_pass = ForwardPass(model, batch())
    first, second = teacher(forward_pass), teacher(forward_pass)
    assert first[0] is second[0] and not first[0].requires_grad
    for was, now, student in zip(before, teacher.model.parameters(), model.parameters()):
        torch.testing.assert_close(now, 0.9 * was + 0.1 * student.detach())
        assert not now.requires_grad and student.requires_grad
    now = [parameter.clone() for parameter in teacher.model.parameters()]
    teacher.eval()(ForwardPass(model, batch()))
    assert all(torch.equal(a, b) for a, b in zip(now, teacher.model.parameters()))


def test_a_chunked_forward_pass_is_read_in_chunks(model):
    teacher, sizes = MomentumTeacher(model).eval(), []
    hook = teacher.model.image_encoder.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    expected = teacher(ForwardPass(model, batch()))
    objective = MomentumContrast(model, queue=4).eval()
    objective.teacher = teacher
    torch.testing.assert_close(teacher(ChunkedForwardPass(model, batch(), chunk=4)), expected)
    assert torch.isfinite(ChunkedForwardPass(model, batch(), chunk=4).compute(objective).loss)
    hook.remove()
    assert sizes == [6, 4, 2, 4, 2]


def test_the_objective_fills_its_queue_ramps_alpha_and_leaves_both_alone_in_evaluation(model):
    objective = MomentumContrast(model, queue=10, alpha=0.4, ramp_steps=2).train()
    seen = [objective(ForwardPass(model, batch(seed=step))).logs for step in range(4)]
    assert [round(logs["alpha"].item(), 3) for logs in seen] == [0.0, 0.2, 0.4, 0.4]
    assert [int(logs["queue"]) for logs in seen] == [0, 6, 10, 10]
    state = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    objective.eval()(ForwardPass(model, batch()))
    assert all(torch.equal(state[name], tensor) for name, tensor in objective.state_dict().items())


def test_more_negatives_make_the_task_harder(model):
    objective = MomentumContrast(model, queue=60, alpha=0.0).train()
    losses = [objective(ForwardPass(model, batch(seed=step))).loss.item() for step in range(10)]
    assert losses[0] == pytest.approx(math.log(6), abs=0.5) and losses[-1] > losses[0] + 1.5  # ln 60 - ln 6 is 2.3


class Interrupted(Exception):
    pass


def test_teacher_queue_and_ramp_are_resumed_to_the_same_bits(tmp_path):
    objective = lambda model: MomentumContrast(model, queue=20, momentum=0.9, ramp_steps=4)  # noqa: E731
    recipe = Recipe(**{**vars(get("clip")), "objective": objective})
    phantoms = Phantoms(48, image_size=32)
    options = dict(budget=TINY.but(epochs=2), progress=False, checkpoint_every=2)
    whole = pretrain(recipe, phantoms, out=tmp_path / "whole", **options)

    def stop(row):
        if row["step"] == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        pretrain(recipe, phantoms, out=tmp_path / "resumed", on_log=stop, **options)
    resumed = pretrain(recipe, phantoms, out=tmp_path / "resumed", resume=True, **options)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert any("queue" in name for name in one) and any("teacher" in name for name in one)
    assert whole.history["loss"].tolist() == resumed.history["loss"].tolist()
    student, teacher = one["model.image_projection.weight"], one["objective.teacher.model.image_projection.weight"]
    assert 0 < (student - teacher).abs().max() < 1


@pytest.mark.parametrize("wrong", [
    lambda model: MomentumTeacher(model, momentum=1.1),
    lambda model: MomentumQueue(4, 0),
    lambda model: MomentumContrast(model, alpha=2.0),
    lambda model: MomentumContrast(model, ramp_steps=-1),
    lambda model: momentum_contrast(unit(4), unit(4), unit(3), unit(3), temperature=0.1),
    lambda model: momentum_contrast(unit(4), unit(3), unit(4), unit(4), temperature=0.1),
])  # fmt: skip
def test_wrong_arguments_are_one_line(model, wrong):
    with pytest.raises(KitError) as caught:
        wrong(model)
    assert "\n" not in str(caught.value)
