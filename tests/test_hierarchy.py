"""Findings and Impression against levels of the image: the formula, which level meets which text, one encoding."""

import math

import pytest
import torch
import torch.nn.functional as F

from medvlp_kit.budget import budget
from medvlp_kit.encoders.image import build_image_encoder
from medvlp_kit.encoders.text import build_text_encoder
from medvlp_kit.errors import KitError
from medvlp_kit.model import ForwardPass, VisionLanguageModel
from medvlp_kit.objectives.contrastive import info_nce
from medvlp_kit.objectives.hierarchy import HierarchicalAlignment, contrast, hierarchical_loss, level_widths
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.pretrain import pretrain
from medvlp_kit.recipes import Recipe
from medvlp_kit.study import Batch, Tokens


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1).requires_grad_()


def test_contrast_equals_its_formula_forward_and_backward():
    image, text = unit(5, 3), unit(5, 3, seed=1)
    targets = torch.rand(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    total = 0.0
    for i in range(5):
        row = [torch.exp(image[i] @ text[j] / 0.4) for j in range(5)]
        for j in range(5):
            column = [torch.exp(image[k] @ text[j] / 0.4) for k in range(5)]
            total = total - targets[i, j] * (torch.log(row[j] / sum(row)) + torch.log(column[i] / sum(column))) / 10
    fast = contrast(image, text, temperature=0.4, targets=targets)
    torch.testing.assert_close(fast, total)
    for ours, theirs in zip(*(torch.autograd.grad(x, (image, text)) for x in (fast, total))):
        torch.testing.assert_close(ours, theirs)


def test_without_targets_it_is_info_nce_near_ln_b():
    image, text = unit(64, 128), unit(64, 128, seed=1)
    torch.testing.assert_close(contrast(image, text, temperature=0.2), info_nce(image, text, temperature=0.2))
    assert abs(contrast(image, text, temperature=1.0).item() - math.log(64)) < 0.05


def test_each_level_meets_its_own_text():
    levels, last, findings, impression = (unit(6, 4, seed=s) for s in range(4))
    loss, described, concluded = hierarchical_loss(levels, last, findings, impression, temperature=0.2, findings_weight=0.3)
    torch.testing.assert_close(described, info_nce(levels, findings, temperature=0.2))
    torch.testing.assert_close(concluded, info_nce(last, impression, temperature=0.2))
    torch.testing.assert_close(loss, 0.3 * described + concluded)
    asked = []

    def targets(text):
        asked.append(text)
        return torch.eye(6, dtype=torch.float64) * 2

    doubled = hierarchical_loss(levels, last, findings, impression, temperature=0.2, targets=targets)
    torch.testing.assert_close(doubled[1], 2 * described)
    assert torch.equal(asked[0], findings) and torch.equal(asked[1], impression) and not asked[0].requires_grad


def build(image="resnet10t", **options):
    torch.manual_seed(0)
    image_encoder = build_image_encoder(image, image_size=32, **options)
    text_encoder = build_text_encoder("bert", vocabulary_size=50, width=16, layers=1, heads=2, length=8, pooling="mean")
    return VisionLanguageModel(image_encoder, text_encoder, embedding_width=8)


def batch(padding=0):
    generator = torch.Generator().manual_seed(0)
    texts = {}
    for number, name in enumerate(("findings", "impression")):
        ids = torch.randint(5, 50, (4, 6 - number), generator=generator)
        mask = torch.arange(6 - number) < torch.tensor([6, 4, 3, 5])[:, None]
        texts[name] = Tokens(ids.masked_fill(~mask, padding), mask)
    return Batch((0, 1, 2, 3), {"frontal": torch.rand(4, 1, 32, 32, generator=generator)}, texts, (), torch.zeros(4, 1))


@pytest.mark.parametrize("image, options", [("resnet10t", {}), ("kit_vit", {}), ("kit_vit", {"pooling": "cls"})])
def test_the_image_is_encoded_once_and_means_the_same(image, options):
    model = build(image, **options).eval()
    objective = HierarchicalAlignment(model, levels=2)
    given, alone = ForwardPass(model, batch()), ForwardPass(model, batch())
    calls = []
    model.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    output = objective(given)
    assert len(calls) == (1 if options else 0)  # a class token needs a pass of its own
    torch.testing.assert_close(given.image_embedding, alone.image_embedding)
    output.loss.backward()
    assert objective.image_head.weight.grad.abs().max() > 0 and objective.findings_head.weight.grad.abs().max() > 0
    assert torch.isfinite(output.logs["findings"]) and output.loss.item() == pytest.approx(
        float(output.logs["findings"] + output.logs["impression"]), rel=1e-5
    )
    torch.testing.assert_close(objective(ForwardPass(model, batch(padding=7))).loss, output.loss)


def test_widths_are_read_without_a_trace():
    encoder = build_image_encoder("resnet10t", image_size=32)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    widths = level_widths(encoder.train())
    assert encoder.training and all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    assert widths == [level.shape[1] for level in encoder.forward_levels(torch.zeros(1, 1, 32, 32))] and len(widths) >= 2
    with pytest.raises(KitError, match="choose 1 to"):
        HierarchicalAlignment(build(), levels=9)


def test_it_trains_in_the_loop():
    recipe = Recipe(
        name="hierarchy-test", title="hierarchy", paper="", year=2024, idea="", objectives=("hierarchy",),
        objective=lambda model: HierarchicalAlignment(model, levels=2), texts=("findings", "impression"),
        text_options={"pooling": "mean"},
    )  # fmt: skip
    sizes = budget("tiny").but(epochs=12, train_studies=32, learning_rate=3e-3)
    history = pretrain(recipe, Phantoms(32, seed=0, image_size=32), budget=sizes, progress=False).history
    assert history["loss"].iloc[-3:].mean() < history["loss"].iloc[0] - 0.3
