"""Every fusion style: one interface, padding that cannot be seen, streams that meet where they say, missing halves."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medvlp_kit import attention
from medvlp_kit.encoders.features import ImageFeatures, TextFeatures
from medvlp_kit.encoders.layers import Attention
from medvlp_kit.errors import KitError
from medvlp_kit.fusion import FusedFeatures, build_fusion
from medvlp_kit.fusion.inputs import sine_positions
from medvlp_kit.fusion.prompt_pool import PromptPool, choose_prompts

IMAGE, TEXT, WIDTH = 12, 8, 16
STYLES = {
    "none": ("none", {}),
    "single": ("single_stream", {}),
    "single, s2s, mean": ("single_stream", {"mask_style": "sequence_to_sequence", "pooling": "mean"}),
    "single, BAR": ("single_stream", {"mask_style": "bidirectional_autoregressive"}),
    "single, non-crossing": ("single_stream", {"mask_style": "non_crossing", "pooling": "mean"}),
    "single, mixed": ("single_stream", {"mask_style": "mixed"}),
    "single, late": ("single_stream", {"meet_at": 1}),
    "dual, co-attention": ("dual_stream", {}),
    "dual, co-attention, late": ("dual_stream", {"meet_at": 1}),
    "dual, text to image": ("dual_stream", {"variant": "text_to_image"}),
    "dual, text to image, late": ("dual_stream", {"variant": "text_to_image", "meet_at": 1}),
}
every_style = pytest.mark.parametrize("name", STYLES)


def build(name, **options):
    style, own = STYLES[name]
    torch.manual_seed(0)
    fusion = build_fusion(style, image_width=IMAGE, text_width=TEXT, width=WIDTH, **own, **options)
    for parameter in fusion.parameters():  # biases and norms start at values that hide mistakes
        parameter.data += 0.1 * torch.randn_like(parameter)
    return fusion.double().eval()


def features(lengths=(6, 3, 1), *, words=6, grid=(2, 3), seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    count = len(lengths)
    mask = torch.arange(words)[None] < torch.tensor(lengths)[:, None]
    image = ImageFeatures(normal(count, IMAGE), normal(count, grid[0] * grid[1], IMAGE), grid)
    return image, TextFeatures(normal(count, TEXT), normal(count, words, TEXT), mask)


def tensors(fused):
    return {"pooled": fused.pooled, "patches": fused.patches, "tokens": fused.tokens}


def weighted_sum(fused, seed=0):
    """A scalar every output number bears on; the plain sum would hide behind a layer norm."""
    generator = torch.Generator().manual_seed(seed)
    parts = tensors(fused).values()
    return sum((part * torch.randn(part.shape, generator=generator, dtype=part.dtype)).sum() for part in parts)


@every_style
@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (4, 4)])
def test_the_same_features_come_out_of_every_style_and_grid(name, grid):
    image, text = features(grid=grid)
    fused = build(name)(image, text)
    assert isinstance(fused, FusedFeatures)
    assert fused.pooled.shape == (3, WIDTH) and fused.pooled.dtype == torch.float64
    assert fused.patches.shape == (3, grid[0] * grid[1], WIDTH) and fused.tokens.shape == (3, 6, WIDTH)
    assert torch.equal(fused.mask, text.mask)
    assert (fused.tokens[~text.mask] == 0).all() and (fused.tokens[text.mask] != 0).any(dim=-1).all()


@settings(max_examples=5, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=3), st.integers(0, 99), st.sampled_from([1e3, float("nan")]))
@every_style
def test_padding_is_seen_by_neither_output_nor_gradient(name, lengths, seed, noise):
    fusion = build(name)
    image, text = features(lengths, seed=seed)
    tokens = text.tokens.clone().requires_grad_()
    fused = fusion(image, dataclasses.replace(text, tokens=tokens))
    before = torch.autograd.grad(weighted_sum(fused), [tokens, *fusion.parameters()], allow_unused=True)
    assert (before[0][~text.mask] == 0).all()

    filled = text.tokens.masked_fill(~text.mask[:, :, None], noise).requires_grad_()
    changed = fusion(image, dataclasses.replace(text, tokens=filled))
    for kind, value in tensors(fused).items():
        assert torch.equal(value, tensors(changed)[kind]), kind
    after = torch.autograd.grad(weighted_sum(changed), [filled, *fusion.parameters()], allow_unused=True)
    for first, second in zip(before, after):
        assert (first is None) == (second is None)
        assert first is None or (torch.equal(first, second) and first.isfinite().all())


@every_style
def test_more_padding_changes_nothing(name):
    """Stronger than changing what is in the padding: zeros that are attended to would pass that, but not this."""
    fusion = build(name)
    image, text = features((4, 0, 2), words=4)
    wider = TextFeatures(
        text.pooled,
        torch.cat([text.tokens, torch.ones(3, 5, TEXT, dtype=torch.float64)], dim=1),
        torch.cat([text.mask, torch.zeros(3, 5, dtype=torch.bool)], dim=1),
    )
    short, long = fusion(image, text), fusion(image, wider)
    torch.testing.assert_close(long.pooled, short.pooled)
    torch.testing.assert_close(long.patches, short.patches)
    torch.testing.assert_close(long.tokens[:, :4], short.tokens)


@every_style
def test_a_permuted_batch_gives_permuted_outputs(name):
    fusion, order = build(name), torch.tensor([2, 0, 1])
    image, text = features()
    straight = fusion(image, text)
    permuted = fusion(
        ImageFeatures(image.pooled[order], image.patches[order], image.grid),
        TextFeatures(text.pooled[order], text.tokens[order], text.mask[order]),
    )
    for kind, value in tensors(straight).items():
        torch.testing.assert_close(tensors(permuted)[kind], value[order])


@every_style
def test_the_fused_kernel_equals_the_formula(name, monkeypatch):
    fusion = build(name)
    image, text = features((6, 3, 0))
    fast = fusion(image, text)
    if name != "none":
        with attention.capture(fusion) as maps:
            captured = fusion(image, text)
        for kind, value in tensors(fast).items():
            torch.testing.assert_close(tensors(captured)[kind], value)
        layers = {name for name, module in fusion.named_modules() if isinstance(module, Attention)}
        assert set(maps.names) == layers
        for item in maps:
            torch.testing.assert_close(item.weights.sum(dim=-1), torch.ones_like(item.weights[..., 0]))
    original = Attention.forward
    monkeypatch.setattr(Attention, "forward", lambda *a, **k: original(*a, **k | {"return_weights": True})[0])
    for block in (module for module in fusion.modules() if type(module).__name__ == "Block"):
        monkeypatch.setattr(block, "forward", explicit_block(block))
    for kind, value in tensors(fusion(image, text)).items():
        torch.testing.assert_close(value, tensors(fast)[kind])


def explicit_block(block):
    """A layer from its parts, written out: each part reads the normalised input and is added to it."""

    def forward(x, *, mask=None, context=None, context_mask=None):
        x = x + block.attention(block.attention_norm(x), mask=mask)
        if block.cross_attention is not None:
            x = x + block.cross_attention(block.cross_norm(x), context, mask=context_mask)
        return x + block.feed_forward(block.feed_forward_norm(x))

    return forward


def test_single_stream_hands_back_the_right_places():
    fusion = build("single")
    image, text = features((6, 4))
    streams = []
    fusion.norm.register_forward_hook(lambda _, __, out: streams.append(out))
    fused = fusion(image, text)
    (stream,) = streams
    assert stream.shape[1] == 1 + 6 + 1 + 6  # [CLS] patches [SEP] words
    assert torch.equal(fused.patches, stream[:, 1:7])
    assert torch.equal(fused.tokens, stream[:, 8:].masked_fill(~text.mask[:, :, None], 0.0))
    assert torch.equal(fused.pooled, fusion.pool(stream[:, 0]))


def test_co_attention_reads_the_other_stream_as_it_entered_the_layer():
    """METER's layer by hand: two streams, two layers, each looking at what the other was before the layer."""
    fusion = build("dual, co-attention")
    image, text = features((6, 4))
    entered_image, entered_text = fusion.inputs(image, text)
    v, w = entered_image.patches, entered_text.tokens
    for image_block, text_block in zip(fusion.image_blocks, fusion.text_blocks):
        v, w = (
            image_block(v, context=w, context_mask=text.mask),
            text_block(w, mask=text.mask, context=v),
        )
    fused = fusion(image, text)
    torch.testing.assert_close(fused.patches, v)
    torch.testing.assert_close(fused.tokens[text.mask], w[text.mask])
    torch.testing.assert_close(fused.pooled, fusion.pool(torch.cat([v.mean(dim=1), w[:, 0]], dim=1)))


def test_text_to_image_reads_the_projected_patches_in_every_layer():
    fusion = build("dual, text to image")
    image, text = features((6, 4))
    entered_image, entered_text = fusion.inputs(image, text)
    v, w = entered_image.patches, entered_text.tokens
    for block in fusion.text_blocks:
        w = block(w, mask=text.mask, context=v)
    fused = fusion(image, text)
    torch.testing.assert_close(fused.patches, v)
    torch.testing.assert_close(fused.pooled, fusion.pool(w[:, 0]))


def reach(name, output, of, **options):
    """Does `output` of the fused features depend on the patches or the words (`of`)?"""
    fusion = build(name, **options)
    image, text = features((6, 6))
    patches, tokens = image.patches.requires_grad_(), text.tokens.requires_grad_()
    fused = fusion(image, text)
    value = tensors(fused)[output]
    weights = torch.randn(value.shape, dtype=value.dtype)
    inputs = patches if of == "patches" else tokens
    return bool(
        torch.autograd.grad((value * weights).sum(), inputs, allow_unused=True, materialize_grads=True)[0].any()
    )


@pytest.mark.parametrize(
    "name, words_see_patches, patches_see_words, pooled_sees_both",
    [
        ("none", False, False, False),  # it pools the encoders' own pooled vectors
        ("single", True, True, True),
        ("single, BAR", True, True, True),
        ("single, late", True, True, True),
        ("single, s2s, mean", True, False, True),
        ("single, non-crossing", False, False, True),
        ("dual, co-attention", True, True, True),
        ("dual, co-attention, late", True, True, True),
        ("dual, text to image", True, False, True),
        ("dual, text to image, late", True, False, True),
    ],
)
def test_streams_meet_as_each_style_says(name, words_see_patches, patches_see_words, pooled_sees_both):
    assert reach(name, "tokens", "patches") == words_see_patches
    assert reach(name, "patches", "tokens") == patches_see_words
    assert (reach(name, "pooled", "patches") and reach(name, "pooled", "tokens")) == pooled_sees_both
    assert reach(name, "tokens", "tokens") and reach(name, "patches", "patches")


def test_none_pools_the_encoders_pooled_vectors_and_their_product():
    fusion = build("none")
    image, text = features()
    v, t = fusion.inputs.image_projection(image.pooled), fusion.inputs.text_projection(text.pooled)
    expected = torch.cat([v, t, v * t], dim=1) @ fusion.pool.weight.T + fusion.pool.bias
    torch.testing.assert_close(fusion(image, text).pooled, expected)


@pytest.mark.parametrize("name, blocks", [("single", "blocks"), ("dual, co-attention", "text_blocks")])
def test_meet_at_is_the_first_layer_in_which_words_see_patches(name, blocks):
    for meet_at in (0, 1, 2):
        fusion = build(name, layers=3, meet_at=meet_at)
        image, text = features((4, 4), words=4)
        patches = image.patches.requires_grad_()
        sees = []
        for block in getattr(fusion, blocks):
            block.register_forward_hook(lambda _, __, out: sees.append((out[:, -4:] ** 3).sum()))
        fusion(image, text)
        found = [
            bool(torch.autograd.grad(s, patches, retain_graph=True, materialize_grads=True)[0].any()) for s in sees
        ]
        assert found == [layer >= meet_at for layer in range(3)]


@pytest.mark.parametrize("name", ["single", "dual, co-attention", "dual, text to image"])
def test_the_order_of_words_and_the_place_of_patches_count(name):
    fusion = build(name)
    image, text = features((6,))
    straight = fusion(image, text).pooled
    swapped = text.tokens.clone()
    swapped[:, [2, 4]] = swapped[:, [4, 2]]
    assert (fusion(image, dataclasses.replace(text, tokens=swapped)).pooled - straight).abs().max() > 1e-4
    mirrored = image.patches.unflatten(1, (2, 3)).flip(2).flatten(1, 2)  # left for right
    assert (fusion(dataclasses.replace(image, patches=mirrored), text).pooled - straight).abs().max() > 1e-4


# Missing modalities


@every_style
@pytest.mark.parametrize("missing, count", [("empty", 1), ("learned", 1), ("prompt_pool", 3)])
def test_a_missing_modality_is_replaced_in_every_style(name, missing, count):
    options = {"missing": missing} | ({"pool_size": 7, "stand_ins": 3} if missing == "prompt_pool" else {})
    fusion = build(name, **options)
    image, text = features()
    only_text, only_image = fusion(None, text), fusion(image, None)
    assert only_text.pooled.shape == only_image.pooled.shape == (3, WIDTH)
    assert only_text.patches.shape == (3, count, WIDTH) and only_text.tokens.shape == (3, 6, WIDTH)
    assert only_image.patches.shape == (3, 6, WIDTH) and only_image.tokens.shape == (3, count, WIDTH)
    assert only_image.mask.all() and torch.equal(only_text.mask, text.mask)
    assert all(value.isfinite().all() for half in (only_text, only_image) for value in tensors(half).values())
    noisy = dataclasses.replace(text, tokens=text.tokens.masked_fill(~text.mask[:, :, None], 1e3))
    assert torch.equal(fusion(None, noisy).pooled, only_text.pooled)  # padding chooses no prompts either
    stand_ins = [p for n, p in fusion.named_parameters() if n.startswith("inputs.missing_text")]
    assert bool(stand_ins) == (missing != "empty")
    for gradient in torch.autograd.grad(weighted_sum(only_image), stand_ins) if stand_ins else ():
        assert gradient.any()


def test_neither_modality_or_unequal_numbers_is_an_error():
    fusion = build("single")
    image, text = features()
    with pytest.raises(KitError, match="neither image nor text"):
        fusion(None, None)
    with pytest.raises(KitError, match="2 images and 3 texts"):
        fusion(ImageFeatures(image.pooled[:2], image.patches[:2], image.grid), text)


def test_prompts_are_the_nearest_by_cosine_and_only_they_learn():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    pool = torch.randn(9, 5, generator=generator, dtype=torch.float64) * torch.arange(1, 10)[:, None]  # unequal lengths
    pool.requires_grad_()
    chosen = choose_prompts(query, pool, count=4)
    expected = []
    for q in query:
        cosine = [float(q @ p / (q.norm() * p.norm())) for p in pool.detach()]
        expected.append(sorted(range(9), key=lambda k: -cosine[k])[:4])
    torch.testing.assert_close(chosen, pool[torch.tensor(expected)])
    chosen.sum().backward()
    times = torch.bincount(torch.tensor(expected).flatten(), minlength=9)
    torch.testing.assert_close(pool.grad, times[:, None].expand(-1, 5).double())
    for count in (0, 10):
        with pytest.raises(KitError, match="pool of 9"):
            choose_prompts(query, pool, count=count)
    with pytest.raises(KitError, match="pool of 4"):
        PromptPool(8, size=4, count=5)


# The parts and the switch


def test_sine_positions_equal_their_formula_and_differ_everywhere():
    positions = sine_positions((2, 3), 8).double()
    for row in range(2):
        for column in range(3):
            angles = [row, row * 10_000**-0.5, column, column * 10_000**-0.5]
            expected = torch.tensor([torch.tensor(a).sin() for a in angles] + [torch.tensor(a).cos() for a in angles])
            torch.testing.assert_close(positions[row * 3 + column], expected.double(), atol=1e-6, rtol=0)
    assert (torch.cdist(positions, positions) + torch.eye(6) > 1e-3).all()
    assert sine_positions((5,), 7).shape == (5, 7)  # a width that does not divide
    assert (sine_positions((5,), 7)[:, 6:] == 0).all()


@pytest.mark.parametrize(
    "style, options, message",
    [
        ("dual_strem", {}, "did you mean 'dual_stream'"),
        ("dual_stream", {"mask_style": "bidirectional"}, "option of fusion 'dual_stream' 'mask_style'"),
        ("single_stream", {"mask_stile": "bidirectional"}, "did you mean 'mask_style'"),
        ("none", {"meet_at": 1}, "option of fusion 'none' 'meet_at'"),
        ("dual_stream", {"variant": "image_to_text"}, "text_to_image"),
        ("single_stream", {"pooling": "max"}, "cls, mean"),
        ("single_stream", {"missing": "zero"}, "empty, learned, prompt_pool"),
        ("single_stream", {"layers": 2, "meet_at": 2}, "layer 0 to 1"),
        ("dual_stream", {"layers": 1, "meet_at": -1}, "layer 0 to 0"),
        ("dual_stream", {"heads": 5}, "cannot be split"),
        ("none", {"missing": "prompt_pool", "pool_size": 2, "stand_ins": 3}, "pool of 2"),
    ],
)
def test_a_wrong_switch_is_one_line(style, options, message):
    with pytest.raises(KitError, match=message) as caught:
        build_fusion(style, image_width=8, text_width=8, width=16, **options)
    assert "\n" not in str(caught.value)


@every_style
def test_every_weight_learns_from_pairs_unless_it_stands_in_for_a_missing_half(name):
    fusion = build(name, missing="learned").train()
    weighted_sum(fusion(*features())).backward()
    idle = {n for n, p in fusion.named_parameters() if p.grad is None or not p.grad.any()}
    # A key's bias adds the same number to all scores of a query, which softmax takes away again.
    assert {n for n in idle if not n.endswith("key.bias")} == {
        "inputs.missing_image.token",
        "inputs.missing_text.token",
    }
