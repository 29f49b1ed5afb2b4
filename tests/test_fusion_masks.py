"""The five attention masks: against their pictures, a slow rule, and what a transformer can learn of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medvlp_kit.encoders.features import ImageFeatures, TextFeatures
from medvlp_kit.errors import KitError
from medvlp_kit.fusion import build_fusion
from medvlp_kit.fusion.masks import (
    MASKS,
    bidirectional,
    bidirectional_autoregressive,
    keys_only,
    mixed,
    non_crossing,
    sequence_to_sequence,
)

PICTURES = {  # two image positions, three words; rows look, columns are seen
    bidirectional: "xxxxx xxxxx xxxxx xxxxx xxxxx",
    sequence_to_sequence: "xx... xx... xxx.. xxxx. xxxxx",
    bidirectional_autoregressive: "xxxxx xxxxx xxx.. xxxx. xxxxx",
    non_crossing: "xx... xx... ..xxx ..xxx ..xxx",
}
PADDED = {  # the same with the third word padding: seen by itself alone
    bidirectional: "xxxx. xxxx. xxxx. xxxx. xxxxx",
    sequence_to_sequence: "xx... xx... xxx.. xxxx. xxxxx",
    bidirectional_autoregressive: "xxxx. xxxx. xxx.. xxxx. xxxxx",
    non_crossing: "xx... xx... ..xx. ..xx. ..xxx",
}


def drawn(allowed):
    return " ".join("".join("x" if see else "." for see in row) for row in allowed.tolist())


@pytest.mark.parametrize("style", PICTURES, ids=lambda f: f.__name__)
def test_masks_look_like_their_pictures(style):
    mask = style(2, torch.tensor([[True, True, True], [True, True, False]]))
    assert mask.shape == (2, 1, 5, 5) and mask.dtype == torch.bool
    assert drawn(mask[0, 0]) == PICTURES[style]
    assert drawn(mask[1, 0]) == PADDED[style]


def rule(style, image_length, real, row, column):
    """May `row` see `column`? One pair at a time, from the words of MedViLL."""
    if row == column:
        return True
    row_is_image, column_is_image = row < image_length, column < image_length
    if not column_is_image and not real[column - image_length]:
        return False
    if style == "bidirectional":
        return True
    if style == "non_crossing":
        return row_is_image == column_is_image
    if row_is_image:
        return column_is_image or style == "bidirectional_autoregressive"
    return column_is_image or column < row


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([name for name in MASKS if name != "mixed"]),
    st.integers(1, 5),
    st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=3),
)
def test_masks_follow_the_rule_for_any_padding(style, image_length, rows):
    allowed = MASKS[style](image_length, torch.tensor(rows))[:, 0]
    length = image_length + 4
    for real, found in zip(rows, allowed.tolist()):
        assert found == [[rule(style, image_length, real, r, c) for c in range(length)] for r in range(length)]


def test_mixed_is_one_of_two_masks_for_the_whole_batch_and_follows_its_generator():
    text = torch.ones(3, 4, dtype=torch.bool)
    causal, full = sequence_to_sequence(2, text), bidirectional(2, text)
    generator = torch.Generator().manual_seed(0)
    draws = [mixed(2, text, generator=generator) for _ in range(400)]
    assert all(torch.equal(draw, causal) or torch.equal(draw, full) for draw in draws)
    share = sum(torch.equal(draw, causal) for draw in draws) / len(draws)
    assert abs(share - 0.75) < 0.09  # four standard deviations
    again = torch.Generator().manual_seed(0)
    assert all(torch.equal(draw, mixed(2, text, generator=again)) for draw in draws)
    assert torch.equal(mixed(2, text, probability=1.0), causal) and torch.equal(mixed(2, text, probability=0.0), full)


def test_keys_only_hides_padding_and_leaves_something_to_look_at():
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert keys_only(mask).shape == (2, 1, 1, 3)
    assert keys_only(mask)[:, 0, 0].tolist() == [[True, True, False], [True, False, False]]


def test_an_unknown_mask_is_one_line_with_a_suggestion():
    with pytest.raises(KitError, match="did you mean 'non_crossing'"):
        build_fusion("single_stream", image_width=8, text_width=8, width=8, mask_style="non_cross")


# What a transformer under the mask can know: gradients of outputs with respect to inputs, in float64.

WORDS, PATCHES = 5, 4


def sensitivity(*, mask_style, layers, pooling="cls", training=False):
    """|d output / d input| of one pair: words to words (T, T), words to image (T, N), image to words (N, T), pooled."""
    torch.manual_seed(0)
    fusion = build_fusion(
        "single_stream", image_width=8, text_width=8, width=16, layers=layers, mask_style=mask_style, pooling=pooling
    )
    fusion = fusion.double().train(training)
    patches = torch.randn(1, PATCHES, 8, dtype=torch.float64, requires_grad=True)
    tokens = torch.randn(1, WORDS, 8, dtype=torch.float64, requires_grad=True)
    text = TextFeatures(torch.zeros(1, 8).double(), tokens, torch.ones(1, WORDS, dtype=torch.bool))
    fused = fusion(ImageFeatures(torch.zeros(1, 8).double(), patches, (2, 2)), text)
    # A weighted sum, not a plain one: layer norm keeps the plain sum of a vector constant, and its gradient is zero.
    weights = torch.randn(16, dtype=torch.float64)

    def gradients(outputs, inputs):
        rows = [torch.autograd.grad(o @ weights, inputs, retain_graph=True, materialize_grads=True)[0] for o in outputs]
        return torch.stack([row[0].abs().sum(-1) for row in rows])

    return {
        "words to words": gradients(fused.tokens[0], tokens),
        "words to image": gradients(fused.tokens[0], patches),
        "image to words": gradients(fused.patches[0], tokens),
        "image to image": gradients(fused.patches[0], patches),
        "pooled to words": gradients(fused.pooled, tokens),
        "pooled to image": gradients(fused.pooled, patches),
    }


def later(matrix):
    """Entries (t, u) with u after t."""
    return matrix[torch.ones_like(matrix).triu(1).bool()]


def test_sequence_to_sequence_never_leaks_a_later_word():
    for layers in (1, 3):
        found = sensitivity(mask_style="sequence_to_sequence", layers=layers)
        assert (later(found["words to words"]) == 0).all()
        assert (found["words to words"].tril() + torch.ones(WORDS, WORDS).triu(1) > 0).all()  # the past is seen
        assert (found["words to image"] > 0).all()
        assert (found["image to words"] == 0).all()


def test_bidirectional_autoregressive_leaks_through_the_image_from_the_second_layer_on():
    one = sensitivity(mask_style="bidirectional_autoregressive", layers=1)
    assert (later(one["words to words"]) == 0).all() and (one["image to words"] > 0).all()
    two = sensitivity(mask_style="bidirectional_autoregressive", layers=2)
    assert (later(two["words to words"]) > 0).all()


def test_non_crossing_keeps_the_modalities_apart():
    found = sensitivity(mask_style="non_crossing", layers=3)
    assert (found["words to image"] == 0).all() and (found["image to words"] == 0).all()
    assert (found["words to words"] > 0).all() and (found["image to image"] > 0).all()


def test_bidirectional_mixes_everything():
    assert all((matrix > 0).all() for matrix in sensitivity(mask_style="bidirectional", layers=1).values())


@pytest.mark.parametrize("style", ["sequence_to_sequence", "non_crossing"])
def test_cls_is_blind_to_the_text_where_it_says_so_and_mean_pooling_is_not(style):
    blind = sensitivity(mask_style=style, layers=2)
    assert (blind["pooled to words"] == 0).all() and (blind["pooled to image"] > 0).all()
    seeing = sensitivity(mask_style=style, layers=2, pooling="mean")
    assert (seeing["pooled to words"] > 0).all() and (seeing["pooled to image"] > 0).all()


def test_mixed_reads_both_ways_in_evaluation_and_draws_in_training():
    assert (later(sensitivity(mask_style="mixed", layers=1)["words to words"]) > 0).all()
    leaks = []
    fusion = build_fusion("single_stream", image_width=8, text_width=8, width=16, mask_style="mixed").train()
    torch.manual_seed(1)
    image = ImageFeatures(torch.randn(1, 8), torch.randn(1, 4, 8), (2, 2))
    for _ in range(40):
        tokens = torch.randn(1, 3, 8, requires_grad=True)
        fused = fusion(image, TextFeatures(torch.zeros(1, 8), tokens, torch.ones(1, 3, dtype=torch.bool)))
        (gradient,) = torch.autograd.grad(fused.tokens[0, 0, 0], tokens)
        leaks.append(bool(gradient[0, 1:].any()))
    assert 1 <= sum(leaks) <= 25  # one in four on average
    tokens = torch.randn(1, 3, 8, requires_grad=True)
    text = TextFeatures(torch.zeros(1, 8), tokens, torch.ones(1, 3, dtype=torch.bool))
    fused = fusion.eval()(image, text, mask_style="sequence_to_sequence")  # the override of one call
    (gradient,) = torch.autograd.grad(fused.tokens[0, 0, 0], tokens)
    assert not gradient[0, 1:].any() and gradient[0, 0].any()
