"""The BERT written out equals transformers' for the same weights; masks hold, padding is inert."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from transformers import BertConfig, BertForMaskedLM, BertModel

from medvlp_kit.encoders.bert import BertEncoder
from medvlp_kit.encoders.layers import Attention, Block, CrossAttention, attend
from medvlp_kit.errors import KitError

SIZES = dict(vocabulary_size=40, width=16, layers=3, heads=4, length=12)


def transformers_bert(kind=BertModel) -> torch.nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=12, initializer_range=0.3,
    )  # fmt: skip
    return kind(config).eval()


def tokens(batch: int = 3, length: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 40, (batch, length), generator=generator)
    lengths = torch.tensor([length, 4, 1])[:batch]
    return ids, torch.arange(length)[None] < lengths[:, None]


@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM])
def test_equals_transformers(kind):
    theirs = transformers_bert(kind)
    ours = BertEncoder(**SIZES, segments=2).eval().load_transformers(theirs.state_dict())
    ids, mask = tokens()
    output = theirs(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
    states = ours.encode(ids, mask)
    assert len(states) == len(output.hidden_states) == 4
    for mine, expected in zip(states, output.hidden_states, strict=True):
        torch.testing.assert_close(mine[mask], expected[mask], atol=1e-5, rtol=0)


def test_gradients_equal_transformers():
    theirs = transformers_bert().double()
    ours = BertEncoder(**SIZES, segments=2).double().eval().load_transformers(theirs.state_dict())
    ids, mask = tokens()
    direction = torch.randn(3, 7, 16, dtype=torch.float64)
    (ours(ids, mask).tokens * direction)[mask].sum().backward()
    (theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state * direction)[mask].sum().backward()
    torch.testing.assert_close(
        ours.blocks[0].attention.query.weight.grad,
        theirs.encoder.layer[0].attention.self.query.weight.grad,
        atol=1e-9, rtol=1e-6,
    )  # fmt: skip


def test_weights_of_another_size_give_one_line():
    with pytest.raises(KitError, match="do not fit this BERT"):
        BertEncoder(**SIZES).load_transformers(transformers_bert().state_dict())  # one segment, not two


@pytest.mark.parametrize("causal", [False, True])
def test_what_a_token_sees(causal):
    """With a causal mask the gradient of token t with respect to every later token is exactly zero."""
    torch.manual_seed(0)
    encoder = BertEncoder(**SIZES, causal=causal, pooling="mean").eval()
    embedded = torch.randn(1, 6, 16, requires_grad=True)
    mask = torch.ones(1, 6, dtype=torch.bool)
    state = embedded
    for block in encoder.blocks:
        state = block(state, mask=mask, causal=causal)
    for place in range(6):
        (gradient,) = torch.autograd.grad((state[0, place] * torch.randn(16)).sum(), embedded, retain_graph=True)
        reached = gradient[0].abs().sum(dim=-1)
        assert bool((reached[: place + 1] > 0).all())
        if place < 5:
            assert bool((reached[place + 1 :] == 0).all()) is causal


def test_causal_encoder_uses_its_mask():
    encoder = BertEncoder(**SIZES, causal=True, pooling="eos").eval()
    ids, mask = torch.randint(5, 40, (1, 6)), torch.ones(1, 6, dtype=torch.bool)
    changed = ids.clone()
    changed[0, 4:] = 5 + (ids[0, 4:] - 4) % 30
    before, after = encoder(ids, mask).tokens, encoder(changed, mask).tokens
    assert torch.equal(before[:, :4], after[:, :4]) and not torch.equal(before[:, 4:], after[:, 4:])


@settings(max_examples=15, deadline=None)
@given(lengths=some.lists(some.integers(0, 7), min_size=1, max_size=4), seed=some.integers(0, 99))
@pytest.mark.parametrize("causal", [False, True])
def test_padding_is_inert(lengths, seed, causal):
    """Other ids at padded places change neither features nor any gradient, not even for an empty text."""
    torch.manual_seed(seed)
    encoder = BertEncoder(**SIZES, causal=causal, pooling="mean")
    mask = torch.arange(7)[None] < torch.tensor(lengths)[:, None]
    ids = torch.randint(5, 40, mask.shape)
    results = []
    for padding in (0, 17):
        encoder.zero_grad()
        features = encoder(ids.masked_fill(~mask, padding), mask)
        (features.tokens.square().sum() + features.pooled.sum()).backward()
        results.append((features, [parameter.grad.clone() for parameter in encoder.parameters()]))
    (first, gradients), (second, others) = results
    assert torch.equal(first.tokens, second.tokens) and torch.equal(first.pooled, second.pooled)
    assert first.pooled.isfinite().all()
    for name, mine, other in zip(dict(encoder.named_parameters()), gradients, others, strict=True):
        assert mine.isfinite().all() and torch.equal(mine, other), name


def oracle(query, key, value, allowed):
    """Attention one query at a time, from the formula."""
    output = torch.zeros_like(query)
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            for q in range(query.shape[2]):
                places = [k for k in range(key.shape[2]) if allowed[b, q, k]]
                if not places:
                    continue
                scores = [(query[b, h, q] @ key[b, h, k]) / query.shape[-1] ** 0.5 for k in places]
                total = sum(score.exp() for score in scores)
                for k, score in zip(places, scores, strict=True):
                    output[b, h, q] += score.exp() / total * value[b, h, k]
    return output


def test_attend_is_the_formula():
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 2, n, 4, dtype=torch.float64) for n in (3, 5, 5))
    allowed = torch.rand(2, 3, 5) > 0.4
    allowed[0, 1] = False  # a query that may look nowhere
    output, weights = attend(query, key, value, mask=allowed[:, None])
    torch.testing.assert_close(output, oracle(query, key, value, allowed))
    sums = allowed.any(dim=-1)[:, None].expand(2, 2, 3).double()
    torch.testing.assert_close(weights.sum(dim=-1), sums)


@pytest.mark.parametrize("masked", ["none", "keys", "pairs", "causal", "nowhere"])
def test_fused_and_explicit_paths_agree(masked):
    """Same output and same gradients, also where a row may look nowhere."""
    torch.manual_seed(0)
    layer = CrossAttention(8, 2, context_width=6).double() if masked != "causal" else Attention(8, 2).double()
    x = torch.randn(2, 4, 8, dtype=torch.float64)
    context = None if masked == "causal" else torch.randn(2, 5, 6, dtype=torch.float64)
    mask = {"keys": torch.rand(2, 5) > 0.5, "pairs": torch.rand(2, 4, 5) > 0.5, "nowhere": torch.zeros(2, 5).bool()}
    options = dict(mask=mask.get(masked), causal=masked == "causal")
    results = []
    for explicit in (False, True):
        layer.zero_grad()
        output = layer(x, context, return_weights=explicit, **options)
        output = output[0] if explicit else output
        output.square().sum().backward()
        results.append((output, [parameter.grad.clone() for parameter in layer.parameters()]))
    torch.testing.assert_close(results[0][0], results[1][0])
    for fused, explicit in zip(results[0][1], results[1][1], strict=True):
        assert fused.isfinite().all()
        torch.testing.assert_close(fused, explicit)


def test_block_returns_its_weights():
    block = Block(8, 2, cross=True, context_width=6)
    x, context = torch.randn(2, 4, 8), torch.randn(2, 5, 6)
    output, weights = block(x, context=context, return_weights=True)
    assert weights["self"].shape == (2, 2, 4, 4) and weights["cross"].shape == (2, 2, 4, 5)
    torch.testing.assert_close(output, block(x, context=context))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: Attention(10, 3), "10 cannot be split among 3 heads"),
        (lambda: CrossAttention(8, 2)(torch.rand(1, 2, 8)), "needs a context"),
        (lambda: Attention(8, 2)(torch.rand(1, 2, 8), mask=torch.ones(1, 3).bool()), "does not fit 2 queries"),
        (lambda: Attention(8, 2)(torch.rand(1, 2, 8), mask=torch.ones(1, 2)), "is boolean"),
        (lambda: Block(8, 2, norm="middle"), "norm='middle'"),
    ],
)
def test_mistakes_give_one_line(call, message):
    with pytest.raises(KitError, match=message):
        call()
