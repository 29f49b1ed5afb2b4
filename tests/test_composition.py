"""Every encoder family, fusion style and objective composes with every other, and what is composed learns.

A combination trains on one batch of 16 phantoms until its loss is clearly better than any answer that ignores the
pairing, or fails. Matching can reach 0.637 by always giving the share of true pairs (one in three); contrast cannot
get below ln 16 = 2.77 without telling the pairs apart. Wrong pairs are drawn at random: hard negatives draw some
images more often than others, and a model that sees only the image learns that (0.59 on this batch), so they would
prove nothing.
"""

import pytest
import torch

from medvlp_kit import recipes
from medvlp_kit.budget import budget
from medvlp_kit.collate import collate
from medvlp_kit.model import ForwardPass
from medvlp_kit.objectives import WeightedSum
from medvlp_kit.objectives.contrastive import InfoNCE
from medvlp_kit.objectives.matching import ImageTextMatching
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.recipes import Recipe
from medvlp_kit.schedule import build_optimizer
from medvlp_kit.text import ReportTokenizer

TINY = budget("tiny")
STUDIES = 16
IMAGE_ENCODERS = {
    "resnet10t": {},
    "densenet121": dict(growth_rate=8, block_config=(2, 2, 2, 2)),
    "convnext_atto": dict(depths=(1, 1, 1, 1), dims=(8, 16, 32, 64)),
    "vit_tiny_patch16_224": dict(depth=1),
    "swin_tiny_patch4_window7_224": dict(depths=(1, 1, 1, 1), embed_dim=16, num_heads=(1, 2, 4, 8)),
    "kit_vit": dict(layers=1, width=32, heads=2),
    "kit_vit_conv_stem": dict(layers=1, width=32, heads=2),
}
TEXT_ENCODERS = ("bert", "gpt2", "kit_bert")
FUSIONS = ("none", "single_stream", "dual_stream")
OBJECTIVES = {  # what to minimise, and the loss to get below: at chance 2.77 and 0.637
    "contrastive": (lambda model: InfoNCE(), 2.2),
    "matching": (lambda model: ImageTextMatching(model.fusion.width, negatives="random"), 0.6),
}
PAIRS = [(image, "bert") for image in IMAGE_ENCODERS] + [("resnet10t", text) for text in TEXT_ENCODERS[1:]]


@pytest.fixture(scope="module")
def batch():
    phantoms = Phantoms(STUDIES, seed=0, image_size=TINY.image_size)
    texts = [phantoms.report(i).text for i in range(STUDIES)]
    assert len(set(texts)) == STUDIES  # else the pairing could not be learnt
    tokenizer = ReportTokenizer.train(texts, vocabulary_size=TINY.vocabulary_size)
    return collate(
        phantoms, range(STUDIES), tokenizer=tokenizer, image_size=TINY.image_size, text_length=TINY.text_length
    )


def build(image, text, fusion, objective, **options):
    torch.manual_seed(0)
    recipe = Recipe(
        name="composition", title="", paper="", year=0, idea="", objectives=(), objective=objective,
        image_encoder=image, image_options=IMAGE_ENCODERS[image], text_encoder=text, fusion=fusion,
        text_options={"pooling": "mean"}, fusion_options={"layers": 1} | options,
    )  # fmt: skip
    return recipes.build(recipe, budget=TINY)


def train(built, batch, *, target, most=300):
    """Losses, step by step, until the mean of the last five is below `target`."""
    both = torch.nn.ModuleList([built.model, built.objective]).train()
    optimizer = build_optimizer(both)
    losses = []
    for step in range(most):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 10)
        loss = built.objective(ForwardPass(built.model, batch)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if step >= 5 and sum(losses[-5:]) / 5 < target:
            break
    return losses


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("image, text", PAIRS)
def test_every_combination_learns(image, text, fusion, objective, batch):
    make, target = OBJECTIVES[objective]
    losses = train(build(image, text, fusion, make), batch, target=target)
    assert all(loss == loss for loss in losses)
    assert sum(losses[-5:]) / 5 < target, f"after {len(losses)} steps: {losses[0]:.3f} -> {losses[-1]:.3f}"


@pytest.mark.parametrize(
    "fusion, options",
    [
        ("single_stream", {"mask_style": "bidirectional_autoregressive"}),
        ("single_stream", {"mask_style": "sequence_to_sequence", "pooling": "mean"}),
        ("single_stream", {"layers": 2, "meet_at": 1}),
        ("dual_stream", {"variant": "text_to_image"}),
        ("dual_stream", {"layers": 2, "meet_at": 1}),
    ],
)
def test_variants_of_fusion_learn_too(fusion, options, batch):
    make, target = OBJECTIVES["matching"]
    losses = train(build("resnet10t", "bert", fusion, make, **options), batch, target=target)
    assert sum(losses[-5:]) / 5 < target


def test_matching_on_a_cls_that_never_sees_the_text_stays_at_chance(batch):
    """The control of the tests above: their target cannot be reached without the text."""
    make, target = OBJECTIVES["matching"]
    built = build("resnet10t", "bert", "single_stream", make, mask_style="sequence_to_sequence")
    losses = train(built, batch, target=target, most=80)
    assert len(losses) == 80 and sum(losses[-10:]) / 10 > 0.625


def test_objectives_add_up_over_one_forward_pass(batch):
    def both(model):
        return WeightedSum({name: make(model) for name, (make, _) in OBJECTIVES.items()}, {"matching": 0.5})

    built = build("resnet10t", "bert", "dual_stream", both)
    calls = []
    built.model.image_encoder.register_forward_hook(lambda *_: calls.append("image"))
    built.model.text_encoder.register_forward_hook(lambda *_: calls.append("text"))
    output = built.objective(ForwardPass(built.model, batch))
    assert sorted(calls) == ["image", "text"]  # each encoded once, whoever asks
    torch.testing.assert_close(output.loss.detach(), output.logs["contrastive"] + 0.5 * output.logs["matching"])
