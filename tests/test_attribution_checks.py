"""Attention maps, sanity checks and the comparison of maps, against slow forms and a planted truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from planted_maps import planted_gallery
from scipy.stats import spearmanr
from test_attribution import built

from medvlp_kit import recipes
from medvlp_kit.attention import capture
from medvlp_kit.attribution import (
    CONTROLS,
    KINDS,
    RULE,
    SCORES,
    cascade,
    compare_maps,
    find_stages,
    fusion_attention,
    image_attention,
    input_randomisation,
    query_attention,
    rank_correlation,
    score_cases,
    seeded_mean,
    weight_randomisation,
)
from medvlp_kit.budget import budget
from medvlp_kit.downstream.encode import randomised
from medvlp_kit.downstream.intervals import bootstrap_mean
from medvlp_kit.errors import KitError
from medvlp_kit.fusion.inputs import sine_positions
from medvlp_kit.study import Tokens
from medvlp_kit.text import ReportTokenizer

TEXTS = ["Small left pleural effusion.", "No pneumothorax.", "The heart is enlarged. Right apical pneumothorax."]
KIND = KINDS["contribution"]


@pytest.fixture(scope="module")
def tokenizer():
    return ReportTokenizer.train(TEXTS, vocabulary_size=60)


@pytest.fixture(scope="module")
def tokens(tokenizer):
    return tokenizer.encode(TEXTS, length=32)


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(scope="module")
def gallery():
    return planted_gallery(16)


def enlarged(cells):
    return F.interpolate(cells.view(len(cells), 1, 8, 8), (32, 32), mode="bilinear", align_corners=False)[:, 0].float()


# ---- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["cls", "average", "attention"])
def test_image_attention_reads_what_is_pooled(tokenizer, images, pooling):
    model = built(tokenizer, pooling=pooling).eval()
    with capture(model.image_encoder) as maps:
        model.encode_image(images)
    layers = [m.weights.mean(1).detach() for m in maps.kind("self")]  # (B, 65, 65) each
    rolled = torch.eye(65, dtype=torch.float64).expand(3, -1, -1)
    for layer in layers:
        rolled = (0.5 * layer + 0.5 * torch.eye(65)) @ rolled  # rows sum to one already
    learned = maps.kind("pool")[0].weights.mean(1)[:, 0].detach() if pooling == "attention" else None
    for whole, options in ((layers[-1], {}), (layers[0], {"layer": 0}), (rolled, {"rolled_out": True})):
        if pooling == "cls":
            cells = whole[:, 0, 1:]
        elif pooling == "average":
            cells = whole[:, 1:, 1:].mean(1)
        else:
            cells = torch.einsum("bn,bnm->bm", learned, whole[:, 1:, 1:]) if "rolled_out" in options else learned
        torch.testing.assert_close(image_attention(model, images, **options), enlarged(cells))
    if pooling != "attention":
        with pytest.raises(KitError, match="3 such attention layers"):
            image_attention(model, images, layer=3)


def test_a_cnn_has_no_attention_unless_it_pools_by_it(tokenizer, images):
    with pytest.raises(KitError, match="no attention layer"):
        image_attention(built(tokenizer, image="resnet10t"), images)
    assert image_attention(built(tokenizer, image="resnet10t", pooling="attention"), images).shape == (3, 32, 32)


@pytest.mark.parametrize("style", ["single_stream", "dual_stream"])
def test_fusion_attention_reads_the_words_rows(tokenizer, images, tokens, style):
    model = built(tokenizer, fusion=style).eval()
    image, text = model.encode_image(images), model.encode_text(tokens)
    with capture(model.fusion) as maps:
        model.fuse(image, text)
    length = tokens.ids.shape[1]
    if style == "single_stream":
        last = maps[-1].weights.mean(1)[:, -length:, 1:65]
    else:
        last = maps["text_blocks.1.cross_attention"].weights.mean(1)
    chosen = torch.zeros_like(tokens.mask)
    chosen[:, 1:3] = True
    torch.testing.assert_close(fusion_attention(model, images, tokens, chosen=chosen), enlarged(last[:, 1:3].mean(1)).detach())
    every = torch.stack([last[row, tokens.mask[row]].mean(0) for row in range(3)])
    torch.testing.assert_close(fusion_attention(model, images, tokens), enlarged(every).detach())
    # Padding takes no part.
    short = int(tokens.mask[1].sum())
    alone = fusion_attention(model, images[1:2], Tokens(tokens.ids[1:2, :short], tokens.mask[1:2, :short]), rolled_out=True)
    whole = fusion_attention(model, images, tokens, rolled_out=True)
    torch.testing.assert_close(alone[0], whole[1], atol=1e-7, rtol=1e-5)
    none = fusion_attention(model, images, tokens, chosen=torch.zeros_like(chosen))
    assert none.isnan().all()


def test_rollout_through_two_streams_equals_loops(tokenizer, images, tokens):
    model = built(tokenizer, fusion="dual_stream").eval()
    image, text = model.encode_image(images), model.encode_text(tokens)
    with capture(model.fusion) as maps:
        model.fuse(image, text)
    length, count = tokens.ids.shape[1], 64
    total = []
    for row in range(3):
        share = torch.eye(count + length, dtype=torch.float64)  # what each place holds of each that entered
        for index in range(2):
            weights = {
                (stream, kind): maps[f"{stream}_blocks.{index}.{kind}"].weights[row].mean(0).detach()
                for stream in ("image", "text") for kind in ("attention", "cross_attention")
            }  # fmt: skip
            after = torch.zeros_like(share)
            for place in range(count + length):
                stream, own, first = ("image", place, 0) if place < count else ("text", place - count, count)
                other = 0 if first else count
                inner, cross = weights[stream, "attention"][own], weights[stream, "cross_attention"][own]
                after[place] += 0.25 * share[place]
                after[place] += 0.25 * (inner @ share[first : first + len(inner)])
                after[place] += 0.5 * (cross @ share[other : other + len(cross)])
            share = after
        torch.testing.assert_close(share.sum(1), torch.ones(count + length, dtype=torch.float64))
        total.append(share[count:, :count][tokens.mask[row]].mean(0))
    torch.testing.assert_close(fusion_attention(model, images, tokens, rolled_out=True), enlarged(torch.stack(total)))


def test_every_fusing_recipe_gives_a_map_and_others_say_why_not(tokenizer, tokens):
    tiny = budget("tiny")
    images = torch.rand(3, 1, 32, 32)
    for name in ("albef", "mmbert", "clip"):
        model = recipes.build(name, budget=tiny, vocabulary_size=tokenizer.vocabulary_size).model
        if model.fusion is None:
            with pytest.raises(KitError, match="no fusion in which words look at patches"):
                fusion_attention(model, images, tokens)
            continue
        for rolled_out in (False, True):
            maps = fusion_attention(model, images, tokens, rolled_out=rolled_out)
            assert maps.shape == (3, 32, 32) and (maps >= 0).all() and maps.std() > 0


def test_query_attention_is_the_decoders_own_answer_with_its_weights_kept(tokenizer, tokens):
    """The phrase asked through `EntityQueries.ask` and the weights of plain attention in its last layer."""
    made = recipes.build("kad", budget=budget("tiny"), vocabulary_size=tokenizer.vocabulary_size)
    model, queries = made.model.eval(), made.objective.parts["queries"].eval()
    queries.read_tokenizer(tokenizer)
    images = torch.rand(3, 1, 32, 32)
    found = query_attention(model, queries, images, tokens)
    image = model.encode_image(images)
    context = queries.from_image(image.patches) + sine_positions(image.grid, queries.norm.normalized_shape[0])
    for row in range(3):
        asked = torch.cat([queries.queries(model)[: len(queries.entities)], model.encode_text(tokens).pooled[row : row + 1]])
        state = queries.from_text(asked)[None]
        for block in queries.blocks:
            state, weights = block(state, context=context[row : row + 1], return_weights=True)
        cells = weights["cross"].mean(1)[:, -1].detach().view(1, 1, *image.grid)
        whole = F.interpolate(cells, (32, 32), mode="bilinear", align_corners=False)[0, 0]
        torch.testing.assert_close(found[row], whole, atol=1e-6, rtol=1e-4)


# ---- rank correlation and intervals ----------------------------------------------------------------------------------


def test_rank_correlation_equals_scipy_with_ties_and_missing_pixels():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(-3, 4, (2, 6, 5, 7), generator=generator).double()
    first[2, :2], second[2, 4, 3] = torch.nan, torch.nan
    for absolute in (False, True):
        found = rank_correlation(first, second, absolute=absolute)
        for row in range(6):
            a, b = first[row].flatten().numpy(), second[row].flatten().numpy()
            a, b = (np.abs(a), np.abs(b)) if absolute else (a, b)
            real = ~(np.isnan(a) | np.isnan(b))
            assert found[row].item() == pytest.approx(spearmanr(a[real], b[real]).statistic, abs=1e-12)
    assert rank_correlation(first[:1], 3 * first[:1] + 7).item() == pytest.approx(1)
    assert rank_correlation(first[:1], -first[:1]).item() == pytest.approx(-1)
    assert rank_correlation(first[:1], -first[:1], absolute=True).item() == pytest.approx(1)


def test_rank_correlation_of_a_constant_or_empty_map_is_undefined():
    some = torch.rand(1, 4, 4)
    assert rank_correlation(some, torch.ones(1, 4, 4)).isnan().all()
    assert rank_correlation(some, torch.full((1, 4, 4), torch.nan)).isnan().all()
    with pytest.raises(KitError, match="two of the same shape"):
        rank_correlation(some, torch.rand(2, 4, 4))


def test_seeded_mean_with_one_seed_is_the_clustered_bootstrap_and_with_several_knows_their_spread():
    generator = np.random.default_rng(0)
    values, clusters = generator.normal(size=60), np.repeat(np.arange(20), 3)
    values[5] = np.nan
    one = seeded_mean(values[:, None], clusters=clusters, resamples=2000, seed=1)
    plain = bootstrap_mean(values, clusters=clusters, resamples=2000, seed=1)
    assert one.value == pytest.approx(plain.value)
    np.testing.assert_allclose([one.low, one.high], [plain.low, plain.high])
    # Seeds that differ by far more than cases do: an interval over cases alone would be many times too narrow.
    three = seeded_mean(values[:, None] / 100 + np.array([0.0, 1.0, 2.0]), clusters=clusters, resamples=2000)
    assert three.high - three.low > 1 > 20 * (one.high - one.low) / 100
    assert np.isnan(seeded_mean(np.full((6, 2), np.nan), clusters=np.arange(6)).value)


# ---- randomisation ---------------------------------------------------------------------------------------------------


def test_stages_run_from_the_output_to_the_input(tokenizer, images):
    vit = built(tokenizer)
    found = list(find_stages(vit, lambda: vit.embed_image(vit.encode_image(images))))
    assert found == [
        "image_projection", "image_encoder.norm", "image_encoder.blocks.2", "image_encoder.blocks.1",
        "image_encoder.blocks.0", "image_encoder.stem.project", "image_encoder",
    ]  # fmt: skip
    cnn = built(tokenizer, image="resnet10t", kind="mlp")
    found = find_stages(cnn, lambda: cnn.embed_image(cnn.encode_image(images)))
    assert list(found)[0] == "image_projection" and list(found)[-1] == "image_encoder.body.conv1"
    assert "image_encoder.body.layer1.0" in found
    owned = [name for names in found.values() for name in names]
    assert len(owned) == len(set(owned))
    assert not any(module._forward_pre_hooks for module in cnn.modules())


def test_a_cascade_destroys_from_the_head_down_and_leaves_the_text_and_the_original(tokenizer, images):
    model = built(tokenizer, image="resnet10t").float().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = find_stages(model, lambda: model.embed_image(model.encode_image(images.float())))
    names = {stage: {f"{m}.{p}" for m in modules for p in dict(model.get_submodule(m).named_parameters(recurse=False))}
             for stage, modules in found.items()}  # fmt: skip
    destroyed: set[str] = set()
    for stage, copy in cascade(model, found, seed=3):
        destroyed |= names[stage]
        for name, value in copy.named_parameters():
            expected = name in destroyed and not torch.equal(randomised(model, seed=3).state_dict()[name], before[name])
            assert torch.equal(value, before[name]) != expected, (stage, name)
    twin = randomised(model, seed=3).eval()
    last = copy.eval()
    torch.testing.assert_close(last.encode_image(images.float()).patches, twin.encode_image(images.float()).patches)
    for stage, copy in cascade(model, found, seed=3, independent=True):
        changed = {name for name, value in copy.named_parameters() if not torch.equal(value, before[name])}
        assert changed <= names[stage]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_map_of_the_weights_falls_and_a_map_of_the_pixels_does_not(gallery):
    def edges(model, images, asked):  # an edge detector: looks like a fine saliency map, and knows no model
        return images[:, :-1].amax(1)

    destroyed = weight_randomisation(gallery, KIND, resamples=200)
    assert list(destroyed.index) == ["image_projection", "image_encoder.mix"]
    assert (destroyed["high"] < 0.7).all() and (destroyed["low"] <= destroyed["rank correlation"]).all()
    stages = {"mix": ["image_encoder.mix"]}
    kept = weight_randomisation(gallery, edges, stages=stages, resamples=200)
    assert kept["rank correlation"].tolist() == [pytest.approx(1)] and kept["low"].item() == pytest.approx(1)
    assert kept["compared"].item() == 3 * len(gallery)


def test_a_map_that_ignores_text_or_image_is_found_out(gallery):
    def image_only(model, images, asked):
        return images[:, :-1].sum(1)

    def text_only(model, images, asked):
        pattern = torch.rand(7, 32, 32, generator=torch.Generator().manual_seed(0))
        return torch.einsum("bd,dhw->bhw", asked.text, pattern)

    columns = ["rank correlation", "low", "high", "of |map|", "|map| low", "|map| high", "least seed", "greatest seed"]
    for kind, same, different in ((image_only, "another phrase", "another picture"),
                                  (text_only, "another picture", "another phrase")):  # fmt: skip
        found = input_randomisation(gallery, kind, resamples=100)
        assert list(found.columns) == [*columns, "compared"]
        assert found.loc[same, "rank correlation"] == pytest.approx(1)
        assert found.loc[different, "high"] < 0.95
    honest = input_randomisation(gallery, KIND, resamples=100)
    assert (honest["high"] < 0.8).all()
    assert honest.equals(input_randomisation(gallery, KIND, resamples=100))  # the seeds decide


def test_others_differ_as_asked(gallery):
    for seed in range(3):
        phrase, study = gallery.others(seed=seed, differ="phrase"), gallery.others(seed=seed, differ="study")
        questions = gallery.questions
        assert all(questions[k] != questions[i] for k, i in enumerate(phrase))
        assert (gallery.cases.studies[study] != gallery.cases.studies).all()
    with pytest.raises(KitError, match="'phrase' or in 'study'"):
        gallery.others(seed=0, differ="side")


# ---- the comparison --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def comparison(gallery):
    def image_only(model, images, asked):
        return images[:, :-1].sum(1)

    return compare_maps(gallery, {"contribution": KIND, "pixels": image_only}, seeds=(0, 1, 2), resamples=300)


def test_a_planted_model_beats_every_control_and_pixels_do_not_beat_shuffled_text(comparison):
    assert comparison.table.loc[("contribution", "model"), "pointing game"] == 1
    assert comparison.beats("contribution") == dict.fromkeys(CONTROLS, True)
    assert comparison.beats("contribution", score="CNR") == dict.fromkeys(CONTROLS, True)
    beaten = comparison.beats("pixels")
    assert not beaten["shuffled text"] and not beaten["random weights"]
    difference = comparison.differences.loc[("pixels", "shuffled text")]
    assert difference["pointing game"] == difference["CNR"] == 0  # the same maps, whatever is asked


def test_every_number_has_its_interval_its_cases_and_its_rule(comparison, gallery):
    names = [part for score in SCORES for part in (score, f"{score} low", f"{score} high")]
    assert list(comparison.table.columns) == [*names, "cases"]
    assert list(comparison.table.index.get_level_values(1)) == ["model", *CONTROLS] * 2
    for score in SCORES:
        low, high = comparison.table[f"{score} low"], comparison.table[f"{score} high"]
        assert (low <= comparison.table[score] + 1e-9).all() and (comparison.table[score] <= high + 1e-9).all()
    assert comparison.values["pixels", "shuffled text"].shape == (len(gallery), 3, len(SCORES))
    for word in ("signed", "|CNR|", "rewards pointing away", "population variance", "NaN", "studies"):
        assert word in RULE == comparison.rule or word in comparison.rule


def test_the_table_is_the_plain_mean_and_differences_are_paired(comparison, gallery):
    maps = gallery.maps(KIND, model=randomised(gallery.model, seed=1))
    by_hand = np.nanmean(score_cases(maps, gallery.cases.boxes), axis=0)
    found = comparison.per_seed.loc[("contribution", "random weights", 1)]
    np.testing.assert_allclose(found[list(SCORES)].to_numpy(dtype=float), by_hand)
    own = comparison.values["contribution", "model"][:, :, 0]
    control = comparison.values["contribution", "random weights"][:, :, 0]
    difference = comparison.differences.loc[("contribution", "random weights"), "pointing game"]
    assert difference == pytest.approx(np.nanmean(own - control))


def test_cases_without_a_pixel_are_left_out_and_nan_pixels_take_no_part():
    maps = torch.zeros(3, 8, 8)
    maps[:, 2, 2] = 1
    boxes = [torch.tensor([[2.0, 2.0, 4.0, 4.0]]), torch.tensor([[2.2, 2.2, 2.3, 2.3]]), torch.tensor([[0.0, 0.0, 4.0, 2.0]])]
    maps[2, 2:] = torch.nan
    maps[2, 1, 7] = 5  # among the pixels that count, the maximum is outside
    values = score_cases(maps, boxes)
    assert values[0, 0] == 1 and np.isnan(values[1]).all() and values[2, 0] == 0
    assert np.isnan(score_cases(torch.full((1, 8, 8), torch.nan), boxes[:1])).all()


def test_signed_contrast_tells_pointing_away_from_pointing_at(gallery):
    maps = gallery.maps(KIND)
    column = {score: place for place, score in enumerate(SCORES)}
    at, away = score_cases(maps, gallery.cases.boxes), score_cases(-maps, gallery.cases.boxes)
    np.testing.assert_allclose(at[:, column["CNR"]], -away[:, column["CNR"]])
    np.testing.assert_allclose(at[:, column["|CNR|"]], away[:, column["|CNR|"]])
    assert (away[:, column["CNR"]] < 0).all() and (away[:, column["|CNR|"]] > 0).all()


def test_gallery_says_what_is_wrong(gallery):
    with pytest.raises(KitError, match=r"gives \(B, 32, 32\) for B images"):
        gallery.maps(lambda model, images, asked: images[:, 0, :8, :8])
    with pytest.raises(KitError, match="nothing to compare"):
        compare_maps(gallery, {})
    assert isinstance(gallery.asked().rows(torch.tensor([2, 0])).sentences, tuple)


def test_maps_do_not_depend_on_chunks_and_follow_the_order(gallery):
    whole = gallery.maps(KIND)
    torch.testing.assert_close(gallery.maps(KIND, chunk=1), whole)
    order = gallery.others(seed=0, differ="study")
    both = gallery.maps(KIND, phrases=order, pictures=order)
    torch.testing.assert_close(both, whole[torch.from_numpy(order)])
