"""Text encoders: pooling, freezing, words, and models read from a folder without network or foreign code."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from transformers import BertConfig, BertModel

from medvlp_kit.encoders import hub
from medvlp_kit.encoders.pooling import aggregate_words, pool_text
from medvlp_kit.encoders.text import build_text_encoder, freeze
from medvlp_kit.errors import KitError

SIZES = dict(vocabulary_size=40, width=16, layers=3, heads=4, length=12)
CHOICES = [
    (name, pooling)
    for name in ("bert", "gpt2", "kit_bert")
    for pooling in ("cls", "mean", "max", "last4", "eos")
    if (name, pooling) != ("gpt2", "cls")
]


def build(name: str, **options):
    torch.manual_seed(0)
    return build_text_encoder(name, **{**SIZES, **options}).eval()


def texts(lengths: list[int], *, total: int = 7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.arange(total)[None] < torch.tensor(lengths)[:, None]
    ids = torch.randint(5, 40, mask.shape, generator=torch.Generator().manual_seed(seed))
    return ids.masked_fill(~mask, 0), mask


@pytest.mark.parametrize("name, pooling", CHOICES)
def test_every_encoder_gives_tidy_features(name, pooling):
    encoder = build(name, pooling=pooling)
    ids, mask = texts([7, 4, 1])
    features = encoder(ids, mask)
    assert features.pooled.shape == (3, 16) and features.tokens.shape == (3, 7, 16)
    assert encoder.width == 16 and encoder.layers == 3 and encoder.length == 12
    assert not features.tokens[~mask].any()
    encoder.train()(ids, mask).pooled.square().sum().backward()
    assert [key for key, value in encoder.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("name, pooling", CHOICES)
def test_padding_is_inert(name, pooling):
    """Neither the ids at padded places nor how many there are change a feature or a gradient."""
    encoder = build(name, pooling=pooling)
    ids, mask = texts([7, 4, 1])
    features, gradients = [], []
    wide = torch.nn.functional.pad
    variants = [(ids, mask), (ids.masked_fill(~mask, 9), mask), (wide(ids, (0, 3), value=3), wide(mask, (0, 3)))]
    for ids_, mask_ in variants:
        encoder.zero_grad()
        features.append(encoder(ids_, mask_))
        features[-1].pooled.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in encoder.parameters()])
    assert torch.equal(features[0].tokens, features[1].tokens) and torch.equal(features[0].pooled, features[1].pooled)
    torch.testing.assert_close(features[2].pooled, features[0].pooled, atol=1e-6, rtol=1e-5)
    for first, second, third in zip(*gradients, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(third, first, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2"])
def test_causal_model_does_not_leak_and_ignores_the_side_of_padding(name):
    encoder = build(name, pooling="eos")
    body = encoder.body
    embedded = torch.randn(1, 6, 16, requires_grad=True)
    states = body(inputs_embeds=embedded, attention_mask=torch.ones(1, 6).long()).last_hidden_state
    for place in range(6):
        (gradient,) = torch.autograd.grad((states[0, place] * torch.randn(16)).sum(), embedded, retain_graph=True)
        reached = gradient[0].abs().sum(dim=-1)
        assert bool((reached[: place + 1] > 0).all()) and not reached[place + 1 :].any()
    ids, mask = texts([4], total=7)
    right, left = encoder(ids, mask), encoder(ids.roll(3, dims=1), mask.roll(3, dims=1))
    torch.testing.assert_close(left.pooled, right.pooled, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(right.pooled, right.tokens[:, 3])  # the last real token, not the last place


def test_last_four_layers_are_summed():
    encoder = build("bert", layers=5, pooling="last4")
    ids, mask = texts([7, 4])
    states = encoder.encode(ids, mask)
    assert len(states) == 6
    expected = states[2] + states[3] + states[4] + states[5]
    features = encoder(ids, mask)
    torch.testing.assert_close(features.tokens[mask], expected[mask])
    torch.testing.assert_close(features.pooled[1], expected[1, :4].mean(dim=0))


POOLED = {
    "cls": lambda rows: rows[0],
    "eos": lambda rows: rows[-1],
    "mean": lambda rows: sum(rows) / len(rows),
    "max": lambda rows: torch.stack(rows).max(dim=0).values,
}


@settings(max_examples=25, deadline=None)
@given(mask=some.lists(some.lists(some.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
@pytest.mark.parametrize("how", POOLED)
def test_pooling_is_over_real_tokens(how, mask):
    mask = torch.tensor(mask)
    tokens = torch.randn(*mask.shape, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(len(mask)))
    pooled = pool_text(tokens, mask, how=how)
    for row in range(len(mask)):
        real = [tokens[row, place] for place in range(5) if mask[row, place]]
        expected = POOLED[how](real) if real else torch.zeros(3, dtype=torch.float64)
        torch.testing.assert_close(pooled[row], expected)


@settings(max_examples=25, deadline=None)
@given(
    words=some.lists(some.lists(some.integers(-1, 4), min_size=6, max_size=6), min_size=1, max_size=3),
    length=some.integers(0, 6),
    how=some.sampled_from(["mean", "sum"]),
)
def test_words_are_made_of_their_pieces(words, length, how):
    word_ids = torch.tensor(words)
    mask = (torch.arange(6) < length).expand_as(word_ids)
    tokens = torch.randn(*word_ids.shape, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    result, result_mask = aggregate_words(tokens, word_ids, mask, how=how)
    assert result.shape[:2] == result_mask.shape
    for row in range(len(words)):
        for word in range(5):
            pieces = [tokens[row, t] for t in range(6) if mask[row, t] and words[row][t] == word]
            if word >= result.shape[1]:
                assert not pieces
                continue
            assert bool(result_mask[row, word]) == bool(pieces)
            expected = sum(pieces, torch.zeros(3, dtype=torch.float64))
            expected = expected / len(pieces) if pieces and how == "mean" else expected
            torch.testing.assert_close(result[row, word], expected)


@pytest.mark.parametrize("name", ["bert", "gpt2", "kit_bert"])
@pytest.mark.parametrize("how", [None, 0, 2, "all"])
def test_freezing(name, how):
    encoder = build(name, pooling="mean", freeze=how, dropout=0.5).train()
    embeddings, layers = encoder.parts()
    fixed = {None: 0, 0: 1, 2: 3, "all": 4}[how]  # of the embeddings and three layers
    groups = [embeddings, *([layer] for layer in layers)]
    learns = [any(p.requires_grad for module in group for p in module.parameters()) for group in groups]
    assert learns == [False] * fixed + [True] * (4 - fixed)
    drops = [any(m.training for module in group for m in module.modules()) for group in groups]
    assert drops == learns  # frozen parts stay in evaluation mode, so they do not drop at random
    if how == "all":
        assert not any(parameter.requires_grad for parameter in encoder.parameters())
        ids, mask = texts([7, 3])
        assert torch.equal(encoder(ids, mask).pooled, encoder(ids, mask).pooled)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(name="bert", vocabulary_size=None), "needs vocabulary_size"),
        (dict(name="bert", pooling="clss"), "did you mean 'cls'"),
        (dict(name="gpt2", pooling="cls"), "use 'eos' or 'mean'"),
        (dict(name="bert", heads=5), "cannot be split among 5 heads"),
        (dict(name="kit_bert", heads=5), "cannot be split among 5 heads"),
        (dict(name="bert", freeze=4), "has 3 layers"),
        (dict(name="bert", freeze="some"), "freeze='some'"),
        (dict(name="nobody/nothing-here"), "neither a folder nor in the local cache"),
        (dict(name="no such thing!"), "neither a folder nor in the local cache"),
        (dict(name="BiomedVLP-CXR-BERT-specialized"), "without running foreign code"),
        (dict(name="BiomedCLIP"), "open_clip"),
    ],
)
def test_mistakes_give_one_line(options, message):
    with pytest.raises(KitError, match=message) as caught:
        build_text_encoder(**{**SIZES, **options})
    assert "\n" not in str(caught.value)


def test_wrong_tokens_give_one_line():
    encoder = build("kit_bert")
    with pytest.raises(KitError, match="at most 12"):
        encoder(torch.ones(1, 13).long(), torch.ones(1, 13).bool())
    with pytest.raises(KitError, match="mask bool"):
        encoder(torch.ones(1, 3).long(), torch.ones(1, 3))


def test_freeze_counts_layers():
    with pytest.raises(KitError, match="choose 0 to 3"):
        freeze(build("bert"), first_layers=-1)


@pytest.fixture
def folder(tmp_path):
    """A small BERT with its tokenizer, in the layout most BERTs have on the hub."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "effusion", "pneumo", "##thorax", "left"]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "model" / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_model_from_a_folder(folder):
    encoder = build_text_encoder(str(folder), pooling="mean").eval()
    tokenizer = hub.load_tokenizer(str(folder))
    assert tokenizer.vocabulary_size == encoder.vocabulary_size == 10
    sentences = ["no pneumothorax", "left effusion no effusion"]
    tokens = tokenizer.encode(sentences, length=8)
    assert tokens.ids.shape == (2, 6) and tokens.mask.sum(dim=1).tolist() == [5, 6]
    expected = BertModel.from_pretrained(folder).eval()(tokens.ids, attention_mask=tokens.mask.long())
    features = encoder(tokens.ids, tokens.mask)
    torch.testing.assert_close(features.tokens[tokens.mask], expected.last_hidden_state[tokens.mask])
    words, mask = aggregate_words(features.tokens, tokenizer.word_ids(sentences, length=8), tokens.mask)
    assert mask.sum(dim=1).tolist() == [2, 4]
    torch.testing.assert_close(words[0, 1], features.tokens[0, 2:4].mean(dim=0))  # pneumo + ##thorax
    with pytest.raises(KitError, match="vocabulary of 10 tokens"):
        build_text_encoder(str(folder), vocabulary_size=600)


def test_a_pickle_is_refused(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(KitError, match="convert it once") as caught:
        build_text_encoder(str(folder))
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_there_are_not_made_up(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights = {name: value for name, value in weights.items() if "layer.1.output" not in name}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(KitError, match="4 weights are missing, for example 'encoder.layer.1.output"):
        build_text_encoder(str(folder))


def test_foreign_code_is_never_run(folder):
    marker = folder.parent / "ran"
    (folder / "code.py").write_text(f"open({str(marker)!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "cxr-bert", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(KitError, match="config.json cannot be used"):
        build_text_encoder(str(folder))
    assert not marker.exists()


def test_a_folder_without_a_model_gives_one_line(tmp_path):
    with pytest.raises(KitError, match="no config.json"):
        build_text_encoder(str(tmp_path))


@pytest.mark.parametrize("name", ["PubMedBERT", "bio_clinicalbert", "emilyalsentzer/Bio_ClinicalBERT", "biobert"])
def test_names_people_type_are_understood(name):
    assert hub.resolve(name) in {model.identifier for model in hub.NAMES.values() if model.loadable}


def test_a_known_name_that_is_not_cached_tells_how_to_get_it(monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    with pytest.raises(KitError, match="hf download emilyalsentzer/Bio_ClinicalBERT"):
        build_text_encoder("Bio_ClinicalBERT")
