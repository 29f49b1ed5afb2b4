"""The model and its forward pass: one scorer, everything encoded once, padding without effect."""

from dataclasses import replace

import pytest
import torch

from medvlp_kit.errors import KitError
from medvlp_kit.model import ForwardPass, Temperature, VisionLanguageModel
from medvlp_kit.objectives import WeightedSum
from medvlp_kit.objectives.contrastive import InfoNCE, info_nce
from medvlp_kit.recipes import Recipe, build, get, names, register
from medvlp_kit.study import Batch, Tokens


def batch(size: int = 4, length: int = 9, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 60, (size, length), generator=generator)
    mask = torch.arange(length)[None] < torch.tensor([length, 4, 6, 3])[:size, None]
    return Batch(
        indices=tuple(range(size)),
        views={"frontal": torch.rand(size, 1, 32, 32, generator=generator)},
        texts={"report": Tokens(ids * mask, mask)},
        sentences=("",) * size,
        labels=torch.zeros(size, 0),
    )


@pytest.fixture
def built():
    torch.manual_seed(0)
    built = build("convirt", budget="tiny", vocabulary_size=60)
    built.model.eval()
    return built


class Counting(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.width, self.calls = inner, inner.width, 0

    def forward(self, *inputs):
        self.calls += 1
        return self.inner(*inputs)


def test_each_view_is_encoded_once_however_many_objectives_ask(built):
    model = built.model
    model.image_encoder, model.text_encoder = Counting(model.image_encoder), Counting(model.text_encoder)
    both = WeightedSum({"first": InfoNCE(), "second": InfoNCE(image_weight=0.75)}, {"second": 2.0})
    forward_pass = ForwardPass(model, batch())
    output = both(forward_pass)
    assert model.image_encoder.calls == model.text_encoder.calls == 1
    parts = output.logs["first"] + 2 * output.logs["second"]
    torch.testing.assert_close(output.loss.detach(), parts)
    assert "first/batch accuracy" in output.logs


def test_the_scorer_is_the_similarity_that_was_trained(built):
    forward_pass = ForwardPass(built.model, batch())
    scores = built.model.similarity(forward_pass.image, forward_pass.text)  # (B, B)
    torch.testing.assert_close(scores, forward_pass.image_embedding @ forward_pass.text_embedding.T)
    expected = info_nce(
        forward_pass.image_embedding, forward_pass.text_embedding, temperature=0.1, image_weight=0.75
    )
    torch.testing.assert_close(built.objective(forward_pass).loss, expected)


def test_padding_changes_neither_loss_nor_gradient(built):
    first = batch()
    tokens = first.tokens
    garbage = torch.where(tokens.mask, tokens.ids, torch.full_like(tokens.ids, 59))
    wider = Tokens(torch.cat([garbage, garbage[:, :3]], 1), torch.cat([tokens.mask, torch.zeros(4, 3).bool()], 1))
    results = []
    for texts in ({"report": tokens}, {"report": Tokens(garbage, tokens.mask)}, {"report": wider}):
        built.model.zero_grad()
        loss = built.objective(ForwardPass(built.model, replace(first, texts=texts))).loss
        loss.backward()
        results.append((loss.detach(), [p.grad.clone() for p in built.model.parameters() if p.grad is not None]))
    for loss, gradients in results[1:]:
        torch.testing.assert_close(loss, results[0][0])
        for ours, theirs in zip(gradients, results[0][1]):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_an_order_of_the_batch_only_orders_the_scores(built):
    first = batch()
    order = torch.tensor([2, 0, 3, 1])
    shuffled = replace(
        first,
        views={"frontal": first.images[order]},
        texts={"report": Tokens(first.tokens.ids[order], first.tokens.mask[order])},
    )
    with torch.no_grad():
        one, two = (ForwardPass(built.model, b) for b in (first, shuffled))
        torch.testing.assert_close(two.image_embedding, one.image_embedding[order], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(two.text_embedding, one.text_embedding[order], rtol=1e-4, atol=1e-5)


def test_temperature_learns_and_is_never_stuck_at_its_clamp():
    fixed, free = Temperature(0.1, learnable=False), Temperature(0.1)
    assert fixed().item() == pytest.approx(0.1) and not fixed.log_scale.requires_grad
    free().backward()
    assert free.log_scale.grad != 0
    with torch.no_grad():
        free.log_scale.fill_(50.0)
    free.zero_grad()
    assert free().item() == pytest.approx(0.01, rel=1e-5)
    free().backward()
    assert free.log_scale.grad != 0
    with pytest.raises(KitError, match="temperature"):
        Temperature(0.0)


def test_embeddings_are_unit_vectors(built):
    forward_pass = ForwardPass(built.model, batch())
    model = built.model
    for vectors in (
        forward_pass.image_embedding,
        forward_pass.text_embedding,
        model.embed_patches(forward_pass.image),
        model.embed_tokens(forward_pass.text),
    ):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(vectors.shape[:-1]))


def test_local_heads_are_their_own():
    torch.manual_seed(0)
    local = Recipe(**{**vars(get("convirt")), "name": "local", "model_options": {"local_projection": True}})
    model = build(local, budget="tiny", vocabulary_size=60).model.eval()
    forward_pass = ForwardPass(model, batch())
    model.embed_patches(forward_pass.image).sum().backward()
    assert model.patch_projection.weight.grad is not None and model.image_projection[0].weight.grad is None


def test_what_it_refuses_is_one_line(built):
    model, first = built.model, batch()
    cases = [
        (lambda: ForwardPass(model, first).view("lateral"), "unknown view"),
        (lambda: ForwardPass(model, first).reading("impression"), "unknown text"),
        (lambda: ForwardPass(model, first).fused, "no fusion"),
        (lambda: model.encode_image(torch.rand(1, 32, 32)), "shape"),
        (lambda: model.encode_image(torch.rand(2, 3, 32, 32)), "shape"),
        (lambda: build("convrit"), "did you mean 'convirt'"),
        (lambda: register(get("convirt")), "rename one"),
        (lambda: WeightedSum({"a": InfoNCE()}, {"b": 1.0}), "weights name"),
        (
            lambda: VisionLanguageModel(model.image_encoder, model.text_encoder, embedding_width=8, projection_kind="x"),
            "projection",
        ),
    ]  # fmt: skip
    for call, words in cases:
        with pytest.raises(KitError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_every_recipe_says_what_it_is():
    assert "convirt" in names()
    for name in names():
        recipe = get(name)
        assert recipe.name == name and recipe.year > 2000
        assert recipe.title and len(recipe.paper) > 20 and len(recipe.idea) > 20 and recipe.objectives
