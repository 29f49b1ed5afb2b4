"""Captured attention is never empty, is what the model used, and leaves the model as it was."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.models.swin_transformer import window_partition
from torch import nn
from transformers import BertConfig, BertModel

from medvlp_kit import attention
from medvlp_kit.encoders.image import build_image_encoder
from medvlp_kit.encoders.layers import Block
from medvlp_kit.encoders.text import build_text_encoder
from medvlp_kit.errors import KitError

FUSED = F.scaled_dot_product_attention
IMAGES = {
    "kit_vit": dict(layers=2, width=32, heads=2),
    "kit_vit_conv_stem": dict(layers=2, width=32, heads=2, pooling="attention"),
    "vit_tiny_patch16_224": dict(depth=2),
    "eva02_tiny_patch14_224": dict(depth=2, patch_size=16),
    "swin_tiny_patch4_window7_224": dict(depths=(2, 2, 1, 1), embed_dim=16, num_heads=(1, 2, 4, 8), window_size=4),
    "resnet10t": dict(pooling="attention"),
}
TEXTS = ("bert", "gpt2", "kit_bert")


def image_case(name: str):
    torch.manual_seed(0)
    model = build_image_encoder(name, image_size=64, **IMAGES[name]).eval()
    images = torch.rand(2, 1, 64, 64)
    return model, lambda: model(images).patches if name != "resnet10t" else model(images).pooled


def text_case(name: str):
    torch.manual_seed(0)
    model = build_text_encoder(name, vocabulary_size=40, width=16, layers=2, heads=4, length=9, pooling="mean").eval()
    ids = torch.randint(5, 40, (3, 9))
    mask = torch.arange(9)[None] < torch.tensor([9, 4, 1])[:, None]
    return model, lambda: model(ids, mask).tokens


def cross_case(name: str):
    torch.manual_seed(0)
    model = nn.ModuleList(Block(16, 4, cross=True, context_width=8) for _ in range(2)).eval()
    x, context = torch.randn(2, 5, 16), torch.randn(2, 7, 8)
    mask = torch.arange(7)[None] < torch.tensor([7, 3])[:, None]

    def run():
        state = x
        for block in model:
            state = block(state, context=context, context_mask=mask)
        return state

    return model, run


CASES = {**{n: image_case for n in IMAGES}, **{n: text_case for n in TEXTS}, "cross": cross_case}


def outputs_of(model: nn.Module, names: list[str], run) -> dict[str, torch.Tensor]:
    """What each of these layers returns in one run."""
    kept, hooks = {}, []
    for name in names:

        def keep(module, arguments, output, name=name):
            kept[name] = output[0] if isinstance(output, tuple) else output

        hooks.append(model.get_submodule(name).register_forward_hook(keep))
    run()
    for hook in hooks:
        hook.remove()
    return kept


@pytest.mark.parametrize("name", CASES)
def test_every_layer_is_captured_and_reproduces_the_fused_output(name):
    model, run = CASES[name](name)
    layers = [n for n, m in model.named_modules() if attention._is_attention(m)]
    with attention.capture(model) as maps:
        explicit_result = run()
    assert sorted(maps.names) == sorted(layers) and len(maps) == len(layers) > 0
    for item in maps:
        sums = item.weights.sum(dim=-1)
        torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-5, rtol=0)
        assert bool((item.weights >= 0).all()) and item.weights.dim() == 4

    fused = outputs_of(model, layers, run)

    def captured_run():
        with attention.capture(model):
            run()

    explicit = outputs_of(model, layers, captured_run)
    for layer in layers:
        torch.testing.assert_close(explicit[layer], fused[layer], atol=2e-6, rtol=1e-4)
    torch.testing.assert_close(explicit_result, run(), atol=5e-6, rtol=1e-4)


@pytest.mark.parametrize("name", [*TEXTS, "cross"])
def test_padding_gets_no_attention(name):
    model, run = CASES[name](name)
    with attention.capture(model) as maps:
        run()
    keys = 7 if name == "cross" else 9
    lengths = [7, 3] if name == "cross" else [9, 4, 1]
    for item in maps.kind("cross" if name == "cross" else "self"):
        assert item.weights.shape[-1] == keys
        for row, length in enumerate(lengths):
            assert not item.weights[row, ..., length:].any()
            assert item.weights[row, ..., :length].any()


def test_kinds_and_parts():
    model, run = cross_case("cross")
    with attention.capture(model) as maps:
        run()
    assert [item.kind for item in maps] == ["self", "cross"] * 2
    assert maps["0.cross_attention"].weights.shape == (2, 4, 5, 7)
    assert maps.part("1").names == ["1.attention", "1.cross_attention"]
    with pytest.raises(KitError, match="did you mean '0.attention'"):
        maps["0.atention"]
    with pytest.raises(KitError, match="unknown kind of attention"):
        maps.kind("crossed")
    pooled, run = image_case("resnet10t")
    with attention.capture(pooled) as maps:
        run()
    assert [(item.kind, tuple(item.weights.shape)) for item in maps] == [("pool", (2, 4, 1, 16))]


def fused_flags(model):
    return [(n, m.fused_attn) for n, m in model.named_modules() if hasattr(m, "fused_attn")]


def hooks_left(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "kit_bert", "bert"])
def test_everything_is_restored(name, fail):
    model, run = CASES[name](name)
    for number, module in enumerate(m for m in model.modules() if hasattr(m, "fused_attn")):
        module.fused_attn = number == 0  # one layer fused, the others not
    if name == "bert":
        model.body.set_attn_implementation("eager")
    before = run(), fused_flags(model), hooks_left(model), torch.backends.mha.get_fastpath_enabled()
    try:
        with attention.capture(model) as maps:
            run()
            assert F.scaled_dot_product_attention is not FUSED
            if fail:
                raise RuntimeError("stop here")
    except RuntimeError:
        assert fail
    assert len(maps) == 2
    assert F.scaled_dot_product_attention is FUSED
    assert (fused_flags(model), hooks_left(model), torch.backends.mha.get_fastpath_enabled()) == before[1:]
    if name == "bert":
        assert model.body.config._attn_implementation == "eager"
    assert torch.equal(run(), before[0])


def test_an_exception_inside_the_model_leaves_nothing_behind():
    model, _ = image_case("kit_vit")
    with pytest.raises(KitError, match="do not tile"), attention.capture(model):
        model(torch.rand(1, 1, 60, 60))
    model.blocks[1].attention.output = nn.Linear(5, 5)  # fails inside a captured layer
    with attention.capture(model) as maps:
        with pytest.raises(RuntimeError):
            model(torch.rand(1, 1, 64, 64))
        seen = len(maps)
        FUSED(*torch.rand(3, 1, 1, 2, 4)), F.scaled_dot_product_attention(*torch.rand(3, 1, 1, 2, 4))
        assert len(maps) == seen == 2  # attention outside every layer belongs to no layer
    with pytest.raises(RuntimeError), attention.capture(model):
        model(torch.rand(1, 1, 64, 64))
    assert F.scaled_dot_product_attention is FUSED and hooks_left(model) == 0 and attention._ACTIVE == []


def test_never_empty():
    with pytest.raises(KitError, match="has no attention layer"), attention.capture(nn.Conv2d(1, 1, 3)):
        pass
    model, run = image_case("kit_vit")
    with pytest.raises(KitError, match="no attention layer ran"), attention.capture(model):
        pass

    class HiddenAttention(nn.Module):
        num_heads = 1

        def forward(self, x):
            return (x @ x.transpose(1, 2)).softmax(dim=-1) @ x

    hidden = nn.Sequential(HiddenAttention())
    with pytest.raises(KitError, match="'0' .*HiddenAttention.* cannot see"), attention.capture(hidden):
        hidden(torch.rand(1, 3, 4))


def test_only_the_given_model_is_captured_and_captures_nest():
    image, run_image = image_case("kit_vit")
    text, run_text = text_case("bert")
    with attention.capture(image) as image_maps, attention.capture(text) as text_maps:
        run_image(), run_text()
        with attention.capture(text) as again:
            run_text()
        run_image(), run_text()
    assert len(image_maps) == 4 and len(again) == 2 and len(text_maps) == 6
    assert F.scaled_dot_product_attention is FUSED


def test_weights_returned_on_request_are_captured_too():
    block = Block(16, 4, cross=True).eval()
    x = torch.randn(2, 3, 16)
    with attention.capture(block) as maps:
        _, weights = block(x, context=x, return_weights=True)
    assert torch.equal(maps["attention"].weights, weights["self"]) and len(maps) == 2


def test_torch_encoder_layer_in_evaluation_mode_is_captured():
    model = nn.TransformerEncoderLayer(16, 4, batch_first=True).eval()
    x = torch.randn(2, 3, 16)
    with torch.no_grad(), attention.capture(model) as maps:
        captured = model(x)
    assert [tuple(item.weights.shape) for item in maps] == [(2, 4, 3, 3)]
    torch.testing.assert_close(captured, model(x), atol=1e-6, rtol=1e-4)


def test_the_graph_is_kept_on_request():
    model, run = image_case("kit_vit")
    with attention.capture(model, detach=False) as maps:
        result = run()
    gradients = torch.autograd.grad(result.square().sum(), [item.weights for item in maps])
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    with attention.capture(model) as maps:
        run()
    assert not any(item.weights.requires_grad for item in maps)


def test_weights_equal_those_transformers_reports():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        attn_implementation="eager",
    )  # fmt: skip
    model = BertModel(config).eval()
    ids = torch.randint(5, 40, (2, 6))
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    expected = model(ids, attention_mask=mask, output_attentions=True).attentions
    with attention.capture(model) as maps:
        model(ids, attention_mask=mask)
    for item, weights in zip(maps, expected, strict=True):
        torch.testing.assert_close(item.weights, weights, atol=1e-6, rtol=1e-5)


def test_swin_windows_lie_where_the_block_put_them():
    """A place attends only inside its (shifted) window; checked with timm's own partition of a map of indices."""
    model, run = image_case("swin_tiny_patch4_window7_224")
    with attention.capture(model) as maps:
        run()
    for number in (0, 1):  # without and with shift, a 16 x 16 grid in windows of 4
        block = model.body.layers[0].blocks[number]
        shift = block.shift_size[0]
        assert (shift > 0) is (number == 1)
        places = torch.arange(256.0).view(1, 16, 16, 1).roll((-shift, -shift), dims=(1, 2))
        windows = window_partition(places, (4, 4)).flatten(1).long()
        same = torch.zeros(256, 256, dtype=torch.bool)
        for window in windows:
            same[window[:, None], window[None, :]] = True
        weights = maps[f"body.layers.0.blocks.{number}.attn"].weights
        assert weights.shape == (2, 1, 256, 256)
        assert not weights[:, :, ~same].any()
        # And each window's weights lie at its own places: weights times values is the block's attention.
        x = torch.randn(2, 16, 16, 16)
        with attention.capture(block) as inner:
            block(x)
        normalised = block.norm1(x)
        value = block.attn.qkv(normalised).chunk(3, dim=-1)[2].flatten(1, 2)  # (B, 256, D), one head
        mixed = block.attn.proj(inner[0].weights[:, 0] @ value).view_as(x)
        torch.testing.assert_close(mixed, block._attn(normalised), atol=1e-6, rtol=1e-4)


def test_padded_windows_are_refused():
    torch.manual_seed(0)
    model = build_image_encoder(
        "swin_tiny_patch4_window7_224", image_size=64, window_size=7, depths=(1, 1, 1, 1), embed_dim=16,
        num_heads=(1, 2, 4, 8),
    )  # fmt: skip
    with pytest.raises(KitError, match="padded to windows of 7 x 7"), attention.capture(model):
        model(torch.rand(1, 1, 64, 64))


def test_rollout_is_the_product_of_layers():
    torch.manual_seed(0)
    maps = [torch.rand(2, 3, 5, 5, dtype=torch.float64).softmax(dim=-1) for _ in range(3)]
    expected = []
    for b in range(2):
        joint = torch.eye(5, dtype=torch.float64)
        for item in maps:
            layer = 0.5 * sum(item[b, h] for h in range(3)) / 3 + 0.5 * torch.eye(5, dtype=torch.float64)
            joint = layer @ joint
        expected.append(joint)
    result = attention.rollout(maps)
    torch.testing.assert_close(result, torch.stack(expected))
    torch.testing.assert_close(result.sum(dim=-1), torch.ones(2, 5, dtype=torch.float64))
    for heads in ("max", "min"):
        torch.testing.assert_close(attention.rollout(maps, heads=heads).sum(-1), torch.ones(2, 5, dtype=torch.float64))
    identity = [torch.eye(4)[None, None]] * 3
    torch.testing.assert_close(attention.rollout(identity)[0], torch.eye(4))
    with pytest.raises(KitError, match="square maps of one size"):
        attention.rollout([torch.rand(1, 1, 3, 4)])
    with pytest.raises(KitError, match="rollout of no maps"):
        attention.rollout([])


def test_rollout_of_a_causal_model_stays_causal():
    model, run = text_case("gpt2")
    with attention.capture(model) as maps:
        run()
    assert not attention.rollout(maps).triu(1).any()


def test_entropy_knows_its_extremes():
    uniform, sharp = torch.full((1, 1, 4, 8), 1 / 8), torch.eye(4, 8)[None, None]
    both = torch.cat([uniform, sharp], dim=1)
    torch.testing.assert_close(attention.entropy(both), torch.tensor([[2.0794415, 0.0]]))
    torch.testing.assert_close(attention.entropy(both, normalise=True), torch.tensor([[1.0, 0.0]]))
    mixed = torch.cat([uniform[:, :, :2], sharp[:, :, :2]], dim=2)
    mask = torch.tensor([[True, True, False, False]])
    torch.testing.assert_close(attention.entropy(mixed, query_mask=mask), torch.tensor([[2.0794415]]))


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(is_causal=True),
        dict(scale=0.3),
        dict(attn_mask=torch.rand(2, 1, 4, 4) > 0.4),
        dict(attn_mask=torch.randn(2, 4, 4, 4)),
        dict(attn_mask=torch.zeros(4, 4).masked_fill(torch.tensor([[False], [True], [False], [False]]), -torch.inf)),
        dict(attn_mask=torch.zeros(2, 1, 1, 4, dtype=torch.bool)),
    ],
)
def test_explicit_attention_equals_the_fused_kernel(options):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 4, 4, 6, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = options.get("attn_mask")
    if mask is not None and mask.is_floating_point():
        options = {"attn_mask": mask.double()}
    expected = FUSED(query, key, value, **options)
    output, _ = attention.explicit_attention(query, key, value, **options)
    torch.testing.assert_close(output, expected)
    for mine, theirs in zip(
        torch.autograd.grad(output.square().sum(), (query, key, value)),
        torch.autograd.grad(expected.square().sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_explicit_attention_shares_keys_among_heads():
    query, key, value = torch.randn(1, 4, 3, 6), torch.randn(1, 2, 3, 6), torch.randn(1, 2, 3, 6)
    expected = FUSED(query, key, value, enable_gqa=True)
    torch.testing.assert_close(attention.explicit_attention(query, key, value, enable_gqa=True)[0], expected)
