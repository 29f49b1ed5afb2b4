"""Grounding metrics against plain loops; maps, cases and controls."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import Oracle, Planted, Words
from torchmetrics.classification import BinaryJaccardIndex

from medvlp_kit.attribution import phrase_prior
from medvlp_kit.budget import budget
from medvlp_kit.downstream.encode import Examination
from medvlp_kit.downstream.grounding import (
    Cases,
    box_mask,
    centre_prior,
    contrast_to_noise,
    contribution_map,
    ground,
    mean_iou,
    patch_similarity,
    pointing_game,
    similarity_map,
)
from medvlp_kit.errors import KitError
from medvlp_kit.study import Region

TINY = budget("tiny")
nan = float("nan")


def slow_inside(box, x, y):
    return box[0] <= x < box[2] and box[1] <= y < box[3]


def slow_cnr(heatmap, boxes, signed):
    inner, outer = [], []
    for y, row in enumerate(heatmap):
        for x, value in enumerate(row):
            if not np.isnan(value):
                (inner if any(slow_inside(box, x, y) for box in boxes) else outer).append(value)
    if not inner or not outer:
        return nan
    difference = np.mean(inner) - np.mean(outer)
    spread = np.sqrt(np.var(inner) + np.var(outer))
    return (difference if signed else abs(difference)) / spread if spread > 0 else nan


@st.composite
def pictures(draw):
    height, width = draw(st.integers(2, 6)), draw(st.integers(2, 6))
    generator = np.random.default_rng(draw(st.integers(0, 10**6)))
    heatmap = generator.normal(size=(height, width))
    heatmap[generator.random((height, width)) < 0.2] = nan
    corner = st.tuples(st.integers(-1, width), st.integers(-1, height), st.integers(0, width + 1),
                       st.integers(0, height + 1))  # fmt: skip
    return heatmap, draw(st.lists(corner, min_size=1, max_size=3))


@given(pictures(), st.booleans())
@settings(max_examples=80, deadline=None)
def test_cnr_equals_its_definition_with_nan_margins_and_several_boxes(picture, signed):
    heatmap, boxes = picture
    slow, fast = slow_cnr(heatmap, boxes, signed), contrast_to_noise(heatmap, boxes, signed=signed).item()
    if not np.isnan(slow):
        assert fast == pytest.approx(slow)
        # Scaling and shifting the map changes nothing; turning it round changes the sign.
        assert contrast_to_noise(3 * heatmap + 7, boxes, signed=signed).item() == pytest.approx(slow)
        assert contrast_to_noise(-heatmap, boxes, signed=signed).item() == pytest.approx(-slow if signed else slow)
    else:
        assert not np.isfinite(fast)


@given(pictures())
@settings(max_examples=50, deadline=None)
def test_mean_iou_equals_torchmetrics_on_the_pixels_that_count(picture):
    heatmap, boxes = picture
    valid = ~np.isnan(heatmap)
    mask = np.array([[any(slow_inside(b, x, y) for b in boxes) for x in range(heatmap.shape[1])]
                     for y in range(heatmap.shape[0])])  # fmt: skip
    fast = mean_iou(heatmap, boxes).item()
    if not (mask & valid).any():
        assert np.isnan(fast)
        return
    low, high = np.nanmin(heatmap), np.nanmax(heatmap)
    scaled = 2 * (heatmap - low) / (high - low) - 1 if high > low else heatmap * 0
    slow = [
        BinaryJaccardIndex()(torch.tensor(scaled[valid] > t), torch.tensor(mask[valid])).item()
        for t in (0.1, 0.2, 0.3, 0.4, 0.5)
    ]
    assert fast == pytest.approx(np.mean(slow), abs=1e-6)


@given(pictures())
@settings(max_examples=50, deadline=None)
def test_pointing_game_equals_argmax_where_the_maximum_is_one_pixel(picture):
    heatmap, boxes = picture
    if np.isnan(heatmap).all():
        return
    y, x = np.unravel_index(np.nanargmax(heatmap), heatmap.shape)
    covered = any(slow_inside(b, i, j) and not np.isnan(heatmap[j, i])
                  for b in boxes for i in range(heatmap.shape[1]) for j in range(heatmap.shape[0]))  # fmt: skip
    fast = pointing_game(heatmap, boxes).item()
    assert np.isnan(fast) if not covered else fast == any(slow_inside(b, x, y) for b in boxes)


def test_equal_maxima_share_the_hit_so_a_constant_map_scores_the_covered_share():
    assert pointing_game(torch.zeros(4, 4), (0, 0, 2, 2)).item() == 0.25
    assert pointing_game(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), (0, 0, 1, 1)).item() == 0.5
    assert contrast_to_noise(torch.ones(4, 4), (0, 0, 2, 2)).item() == 0.0
    assert mean_iou(torch.ones(4, 4), (0, 0, 2, 2)).item() == 0.0
    # Bilinear up-sampling of 2 x 2 leaves a plateau in the corner; rounding must not choose within it.
    coarse = torch.tensor([[0.1, 0.2], [0.3, 0.7]])[None, None]
    fine = torch.nn.functional.interpolate(coarse, size=30, mode="bilinear", align_corners=False)[0, 0]
    assert pointing_game(fine, (22, 22, 30, 30)).item() == 1.0
    assert 0 < pointing_game(fine, (29, 29, 30, 30)).item() < 0.1


def test_boxes_are_half_open_and_hold_the_pixels_whose_centres_they_hold():
    assert box_mask((1, 0, 3, 1), height=2, width=4).tolist() == [[False, True, True, False], [False] * 4]
    assert box_mask((0.4, 0.0, 1.6, 1.0), height=1, width=3).tolist() == [[True, True, False]]
    assert box_mask((0.5, 0.5, 1.5, 1.5), height=2, width=2).tolist() == [[True, False], [False, False]]
    assert not box_mask((2, 2, 2, 5), height=6, width=6).any()


def test_empty_boxes_are_undefined_and_batches_equal_single_maps():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 8, 8, generator=generator)
    boxes = [torch.tensor([[1.0, 1, 4, 4]]), torch.tensor([[0.0, 0, 2, 2], [5, 5, 8, 8]]), torch.zeros(1, 4)]
    for metric in (contrast_to_noise, mean_iou, pointing_game):
        together = metric(maps, boxes)
        alone = torch.stack([metric(one, box) for one, box in zip(maps, boxes)])
        torch.testing.assert_close(together, alone, equal_nan=True, rtol=0, atol=0)
        assert together[2].isnan() and not together[:2].isnan().any()
        masks = torch.stack([box_mask(box, height=8, width=8) for box in boxes])
        torch.testing.assert_close(metric(maps, masks), together, equal_nan=True, rtol=0, atol=0)
    assert contrast_to_noise(maps[0], (0, 0, 8, 8)).isnan()  # no pixel is outside
    with pytest.raises(KitError, match="boxes for 2 heatmaps"):
        pointing_game(maps, boxes[:2])
    with pytest.raises(KitError, match="a heatmap is"):
        pointing_game(torch.zeros(5), boxes[0])


def test_a_similarity_map_is_the_cosine_of_each_patch_where_the_patch_lies():
    patches = torch.nn.functional.normalize(torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    text = patches[:, 4]  # the patch in row 1, column 1 of a 2 x 3 grid
    maps = patch_similarity(patches, text, (2, 3), size=(20, 30))
    assert maps.shape == (2, 20, 30)
    for b in range(2):
        for n in range(6):
            y, x = divmod(n, 3)
            # the four pixels around the patch's centre
            got = maps[b, 10 * y + 4 : 10 * y + 6, 10 * x + 4 : 10 * x + 6].mean()
            if y == 1 and x == 1:
                assert got > 0.9
        assert divmod(int(maps[b].argmax()), 30)[0] >= 10
        assert 10 <= divmod(int(maps[b].argmax()), 30)[1] < 20
    same_size = patch_similarity(patches, text, (2, 3), size=(2, 3))
    slow = torch.tensor([[float(patches[b, n] @ text[b]) for n in range(6)] for b in range(2)]).reshape(2, 2, 3)
    torch.testing.assert_close(same_size, slow)


@pytest.fixture
def exam():
    words = Words()
    return Examination(Oracle(words), words, Planted(40), budget=TINY)


def test_contributions_of_the_patches_average_to_the_preference_of_the_image(exam):
    """With average pooling and a linear head: mean map = |pooled projection| * (<v, t> - <v, a>)."""
    model = exam.model
    torch.manual_seed(0)
    torch.nn.init.normal_(model.image_projection.weight)
    images = exam.collection.images(range(3), size=32)
    tokens = exam.tokenizer.encode(["there is left pneumothorax", "right fracture", "no fracture"], length=9)
    against = exam.tokenizer.encode(["right pneumothorax"], length=9)
    with torch.no_grad():
        features = model.encode_image(images)
        text, other = (model.embed_text(model.encode_text(t)) for t in (tokens, against))
        length = model.image_projection(features.pooled).norm(dim=-1)
        expected = length * (model.embed_image(features) * (text - other)).sum(-1)
    maps = contribution_map(model, images, tokens, against=against, size=4)
    torch.testing.assert_close(maps.mean((1, 2)), expected)
    torch.testing.assert_close(contribution_map(model, features, text, against=other, size=4), maps)
    same = contribution_map(model, images, tokens, against=tokens)
    assert same.shape == (3, 32, 32) and not same.any()  # nothing speaks for a text over itself


def test_similarity_map_takes_images_or_features_tokens_or_embeddings(exam):
    model = exam.model
    images = exam.collection.images(range(3), size=32)
    tokens = exam.tokenizer.encode(["there is left pneumothorax"] * 3, length=9)
    with torch.no_grad():
        features, text = model.encode_image(images), model.embed_text(model.encode_text(tokens))
    expected = similarity_map(model, images, tokens)
    assert expected.shape == (3, 32, 32)
    torch.testing.assert_close(similarity_map(model, features, text, size=32), expected)
    with pytest.raises(KitError, match="needs size="):
        similarity_map(model, features, text)
    with pytest.raises(KitError, match="3 images and 2 texts"):
        similarity_map(model, images, text[:2])


def test_pieces_of_one_finding_and_side_are_one_case(exam):
    cases = Cases(exam.collection, size=32)
    assert len(cases) == sum(len(exam.collection.regions(i, size=32)) for i in range(len(exam)))

    class Twice(Planted):
        def regions(self, index, *, size, view="frontal"):
            return super().regions(index, size=size) * 2

    twice = Cases(Twice(40), size=32)
    assert len(twice) == len(cases) and {len(boxes) for boxes in twice.boxes} == {2}


def test_a_finding_that_reports_give_no_side_is_one_case_with_both_its_boxes():
    class Both(Planted):
        def regions(self, index, *, size, view="frontal"):
            return tuple(Region(label, (x, 0, x + 4, 4), side=side)
                         for label in ("Edema", "Fracture") for x, side in ((0, "right"), (8, "left")))  # fmt: skip

    cases = Cases(Both(1), size=32)
    found = [(label, side, len(boxes)) for label, side, boxes in zip(cases.labels, cases.sides, cases.boxes)]
    assert found == [("Edema", None, 2), ("Fracture", "right", 1), ("Fracture", "left", 1)]


def test_a_perfect_model_points_at_every_phrase_and_its_controls_do_not(exam):
    result = ground(exam.model, exam.tokenizer, exam.collection, examination=exam, kind="plain")
    assert result.value == 1.0 and result.passed
    assert {c.name for c in result.controls} == {"shuffled phrases", "random weights", "centre prior"}
    by_map = result.table.xs("all", level="finding")
    assert by_map.loc["model", "CNR"] > 2 > by_map.drop("model")["CNR"].max()
    assert by_map.loc["model", "phrases"] == result.n
    assert exam.model.images_seen == len(exam)  # the boxes are found in maps of images encoded once


def test_a_mirrored_model_fails_because_phrases_name_the_side():
    words = Words()
    result = ground(Oracle(words, mirrored=True), words, Planted(40), budget=TINY, kind="plain")
    assert result.value < 0.5 and not result.passed


def test_without_boxes_grounding_says_so():
    words = Words()
    with pytest.raises(KitError, match="no boxes"):
        ground(Oracle(words), words, Planted(5, boxes=False), budget=TINY)


def test_the_centre_prior_is_highest_in_the_centre_and_symmetric():
    prior = centre_prior((8, 12))
    assert prior.shape == (8, 12)
    assert divmod(int(prior.argmax()), 12) in {(3, 5), (3, 6), (4, 5), (4, 6)}
    torch.testing.assert_close(prior, prior.flip(0).flip(1))


def test_the_phrase_prior_is_the_mean_box_of_the_same_finding_and_side():
    size = 32
    learned = Cases(Planted(40), size=size)
    name, side = learned.labels[0], learned.sides[0]
    maps = phrase_prior(learned, [(name, side), ("Nothing of the kind", None)], size=size)
    alike = [k for k in range(len(learned)) if (learned.labels[k], learned.sides[k]) == (name, side)]
    expected = sum(box_mask(learned.boxes[k], height=size, width=size).double() for k in alike) / len(alike)
    torch.testing.assert_close(maps[0].double(), expected, atol=1e-6, rtol=0)
    assert maps.shape == (2, size, size) and not maps[1].any()


def test_contributions_add_up_to_the_zero_shot_score(exam):
    """Average pooling and a linear head: the mean of the map is the score times the length of the pooled projection."""
    model = exam.model
    images = exam.collection.images(range(3), size=32)
    encode = lambda text: exam.tokenizer.encode([text] * 3, length=9)  # noqa: E731
    text, other = encode("there is left pneumothorax"), encode("no pneumothorax")
    with torch.no_grad():
        image = model.encode_image(images)
        length = model.image_projection(image.pooled).norm(dim=-1)  # (3,)
        t, a = (model.embed_text(model.encode_text(one)) for one in (text, other))
        score = (model.embed_image(image) * (t - a)).sum(-1)  # (3,)
    maps = contribution_map(model, images, text, against=other, size=image.grid)  # no up-sampling
    torch.testing.assert_close(maps.mean((1, 2)), score * length)
    same = contribution_map(model, images, text, against=text)
    assert same.abs().max() < 1e-6
