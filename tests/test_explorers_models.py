"""Explorers that ask a model: grounding, attention, masking, embeddings, training. Their pure functions, without a kernel."""

from __future__ import annotations

import asyncio
import re

import numpy as np
import pytest
import torch

from medvlp_kit import explorers
from medvlp_kit.attention_maps import AttentionMap, rollout
from medvlp_kit.budget import budget
from medvlp_kit.errors import KitError
from medvlp_kit.explorers.attend import MEAN, Attention, sources
from medvlp_kit.explorers.ground import Grounding, regions_meant
from medvlp_kit.explorers.masks import Masking, hidden_patches, part_of
from medvlp_kit.explorers.monitor import Monitor, groups_of, training_page
from medvlp_kit.explorers.plane import Plane, alignment_numbers
from medvlp_kit.explorers.shell import Explorer
from medvlp_kit.objectives.masked_image import random_masking
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.pretrain import pretrain
from medvlp_kit.study import Region

SIZE = budget("tiny").but(train_studies=32, epochs=1)


@pytest.fixture(scope="module")
def phantoms():
    return Phantoms(12, seed=3, image_size=SIZE.image_size)


@pytest.fixture(scope="module")
def run():
    return pretrain("kad", Phantoms(32), budget=SIZE, progress=False)


@pytest.fixture(scope="module")
def masked():
    return pretrain("mrm", Phantoms(32), budget=SIZE, progress=False)


# grounding


def test_a_phrase_means_the_regions_it_names_on_its_side():
    left, right = (Region("Pleural Effusion", (0, 0, 4, 4), side=side) for side in ("left", "right"))
    nodule = Region("Lung Lesion", (1, 1, 2, 2), side="left")
    regions = (left, right, nodule)
    assert regions_meant("There is a left pleural effusion.", regions) == (left,)
    assert regions_meant("pleural effusion", regions) == (left, right)
    assert regions_meant("Bilateral pleural effusions.", regions) == (left, right)
    assert regions_meant("The chest was examined", regions) == ()


def test_grounding_answers_quickly_and_then_wholly(run, phantoms):
    view = Grounding(run, phantoms)
    study = next(i for i in range(len(phantoms)) if phantoms.regions(i, size=SIZE.image_size))
    region = phantoms.regions(study, size=SIZE.image_size)[0]
    first, whole = view(study=study, phrase=f"{region.side or ''} {region.label}".strip())
    assert first.count("working …") == 7 and "working" not in whole  # five of the control, two slow ones of the model
    assert len(re.findall(r"(?:hit|miss), CNR [+-]\d", whole)) >= 10
    assert 'data-pick="' in whole and "Cosine lost" in whole
    for phrase, word in (("  ", "no phrase"), ("x", "study 99")):
        with pytest.raises(KitError, match=word):
            list(view(study=99 if word == "study 99" else 0, phrase=phrase))


def test_a_page_that_grows_ends_with_its_last_state():
    import ipywidgets as widgets

    def view(number):
        yield "first"
        yield f"last {number}"

    made = Explorer(view, {"number": widgets.IntSlider(description="number")}, title="Growing")
    assert made.board.value == "last 0" and made.seconds > 0


# attention


def test_attention_rows_are_shown_as_shares(run, phantoms):
    view = Attention(run, phantoms)
    image, words, grid, found = view.of(0)
    for source in found.values():
        assert source.weights.shape[1:] == (len(source.queries), len(source.keys))
        torch.testing.assert_close(source.weights.sum(-1), torch.ones(source.weights.shape[:2]), atol=1e-4, rtol=0)
    assert {"text: words to words, layer 1", "findings to patches, layer 1", "findings to findings, layer 1"} <= set(found)
    page = view(study=0, layer="findings to patches, layer 1", head="1", picked="Pneumothorax")
    assert "Asked by Pneumothorax" in page
    share = found["findings to patches, layer 1"].weights[0, list(run.objective.parts["queries"].entities).index("Pneumothorax")]
    assert f"with {float(share.max()):.0%}" in page
    with pytest.raises(KitError, match="head 9"):
        view(study=0, layer="findings to patches, layer 1", head="9", picked="")
    with pytest.raises(KitError, match="attention"):
        view(study=0, layer="nothing", head=MEAN, picked="")


def test_every_kind_of_model_names_its_attention():
    generator = torch.Generator().manual_seed(0)

    def layer(name, kind, queries, keys):
        return AttentionMap(name, kind, torch.rand(1, 2, queries, keys, generator=generator).softmax(-1))

    maps = [
        layer("model.image_encoder.blocks.0.attention", "self", 5, 5),
        layer("model.image_encoder.blocks.1.attention", "self", 5, 5),
        layer("model.fusion.text_blocks.0.cross_attention", "cross", 3, 4), layer("model.fusion.blocks.0.attention", "self", 9, 9),
        layer("model.image_encoder.pool.attention", "pool", 1, 4),
    ]  # fmt: skip
    found = sources(maps, patches=4, words=3, entities=[])
    assert found["image: patches to patches, layer 1"].queries == ["[CLS]", "patch 0", "patch 1", "patch 2", "patch 3"]
    assert found["fusion: words to patches, layer 1"].queries == ["word 0", "word 1", "word 2"]
    joined = found["fusion: patches and words, layer 1"].queries
    assert joined[0] == "[CLS]" and joined[5] == "[SEP]" and joined[-1] == "word 2"
    assert found["image: pooling, layer 1"].keys == ["patch 0", "patch 1", "patch 2", "patch 3"]
    torch.testing.assert_close(found["image: patches to patches, rollout"].weights, rollout(maps[:2]))


# masking


@pytest.mark.parametrize("pattern", ["scattered", "one block"])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.75, 1.0])
def test_hidden_patches_are_counted_exactly(pattern, ratio):
    hidden = hidden_patches((6, 8), ratio=ratio, pattern=pattern, draw=4)
    assert int(hidden.sum()) == min(47, round(ratio * 48))
    assert (hidden == hidden_patches((6, 8), ratio=ratio, pattern=pattern, draw=4)).all()


def test_a_block_hangs_together_and_halves_are_halves():
    hidden = hidden_patches((8, 8), ratio=0.25, pattern="one block", draw=1).reshape(8, 8).numpy()
    rows, columns = np.nonzero(hidden)
    assert (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1) <= 2 * hidden.sum()
    left = hidden_patches((4, 4), ratio=0.5, pattern="left half", draw=0).reshape(4, 4)
    assert left[:, :2].all() and not left[:, 2:].any()


def test_the_model_sees_no_hidden_pixel(masked, phantoms):
    """What is drawn may not depend on the pixels of hidden patches, and restore puts the visible ones back."""
    encoder = masked.model.eval().image_encoder
    images = phantoms.images([0], size=SIZE.image_size)
    grid = tuple(side // encoder.stride for side in images.shape[-2:])
    hidden = hidden_patches(grid, ratio=0.5, pattern="left half", draw=0)
    changed = images.clone()
    changed[..., : images.shape[-1] // 2] = torch.rand(images[..., : images.shape[-1] // 2].shape)
    with torch.no_grad():
        one, two = part_of(encoder, images, hidden), part_of(encoder, changed, hidden)
    torch.testing.assert_close(one.features.patches, two.features.patches)
    places = torch.arange(grid[0] * grid[1])[None, :, None]
    _, mask, restore = random_masking(places, ratio=0.5, generator=None)
    assert restore.shape == one.restore.shape and mask.shape == one.mask.shape
    back = torch.cat([torch.nonzero(~hidden), torch.nonzero(hidden)])[one.restore[0], 0]
    assert (back == torch.arange(len(hidden))).all()


def test_masking_fills_the_gaps_and_says_what_the_image_was_worth(masked, phantoms):
    view = Masking(masked, phantoms)
    asked = dict(study=1, image_ratio=0.75, pattern="scattered", text_ratio=0.5, words="all", draw=0)
    first, page = view(**asked, picked="")
    assert "…" in first and "in its place" in page
    hidden, drawn, chosen, chances = view.predicted(1, 1, *list(asked.values())[1:])
    assert f"{int(chosen.sum())} pieces hidden" in page and page.count("data-pick") == int(chosen.sum())
    torch.testing.assert_close(chances.sum(-1), torch.ones(len(chances)))
    place = int(torch.nonzero(chosen)[0])
    assert "In place of" in list(view(**asked, picked=str(place)))[-1]
    assert "0 of" in list(view(**asked | {"image_ratio": 0.0}, picked=""))[-1]
    with pytest.raises(KitError, match="restores nothing"):
        Masking(pretrain("clip", Phantoms(32), budget=SIZE, progress=False), phantoms)


def test_a_masked_part_of_a_hybrid_is_found(phantoms):
    run = pretrain("m3ae", Phantoms(32), budget=SIZE, progress=False)
    pages = Masking(run, phantoms)(
        study=0, image_ratio=0.5, pattern="one block", text_ratio=0.5, words="medical", draw=1, picked=""
    )  # fmt: skip
    assert "patches hidden" in list(pages)[-1]


# embeddings


@pytest.fixture(scope="module")
def plane():
    phantoms = Phantoms(40, seed=1)
    generator = torch.Generator().manual_seed(0)

    def cloud(shift):
        return torch.nn.functional.normalize(torch.randn(40, 16, generator=generator) + shift, dim=-1)

    image = cloud(0.0)
    stages = {"step 1": (cloud(1.0), cloud(-1.0)), "step 2": (image, cloud(0.0)), "step 3": (image, image)}
    return Plane({"train": phantoms.subset(range(25)), "test": phantoms.subset(range(25, 40))}, stages, size=32)


def test_numbers_of_clouds():
    image = torch.eye(4)
    same = alignment_numbers(image, image)
    assert same == {"gap": 0.0, "cosine of pairs": 1.0, "recall@5": 1.0}
    many = torch.nn.functional.normalize(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    alike = alignment_numbers(torch.ones(50, 1), torch.ones(50, 1))
    assert alike["recall@5"] == pytest.approx(5 / 50)  # all tie: the retrieval rule, lower index first, finds five of fifty
    assert alignment_numbers(many, many.roll(1, 0))["recall@5"] < 0.3


def test_the_table_has_two_points_a_study(plane):
    table = plane.table
    assert len(table) == 80 and (table["study"].to_numpy() == np.tile(np.arange(40), 2)).all()
    assert list(table["split"].value_counts().sort_index()) == [30, 50]
    findings = [f.name for f in plane.parts["train"].findings(3) if f.status != "absent"]
    told = table.loc[3, "finding"]
    assert told == ("none" if not findings else findings[0] if len(findings) == 1 else "several")


def test_the_frame_stands_still_while_points_move(plane):
    last, first = plane.coordinates("step 3", "PCA"), plane.coordinates("step 1", "PCA")
    np.testing.assert_allclose(last[:40], plane.coordinates("step 2", "PCA")[:40], atol=1e-5)  # the same images
    assert np.abs(first - last).max() > 0.1
    with pytest.raises(KitError, match="projection"):
        plane.coordinates("step 1", "LDA")


def test_a_point_shows_its_study_and_neighbours_and_many_a_table(plane):
    asked = dict(projection="PCA", colour="finding", pairs=False)
    page = plane(checkpoint="step 3", **asked, picked="47")
    assert "study 7 (train)" in page and "Nearest images" in page and "1.000" in page  # its own image: identical here
    many = plane(checkpoint="step 1", **asked, picked="0,1,2,42")
    assert "4 points: 3 images and 1 texts of 3 studies" in many
    assert "gap between the clouds" in many and "recall" in many
    for wrong in ("80", "-1", "a"):
        with pytest.raises(KitError, match="points"):
            plane(checkpoint="step 1", **asked, picked=wrong)
    with pytest.raises(KitError, match="checkpoint"):
        plane(checkpoint="step 9", **asked, picked="")


def test_stages_must_fit_the_studies(plane):
    with pytest.raises(KitError, match="40 images and 40 texts for 25 studies"):
        Plane({"train": plane.parts["train"]}, plane.stages, size=32)


def test_the_embedding_widget_moves_with_its_controls(plane):
    made = explorers.embedding_explorer(None, plane.parts, stages=plane.stages, size=32)
    made.scatter.selection([3, 4, 45])
    assert "3 points" in made.board.value and made.error is None
    made.set(checkpoint="step 1", colour="split", pairs=True)
    assert made.error is None and "step 1" in made.board.value
    static = made.static._repr_html_() if hasattr(made.static, "_repr_html_") else str(made.static.__dict__)
    assert "coloured by split" in static
    with pytest.raises(KitError, match="run, or stages"):
        explorers.embedding_explorer(None, plane.parts)


def test_growth_ships():
    stages, studies = explorers.embed.growth()
    first, last = (alignment_numbers(*stages[name]) for name in (list(stages)[0], list(stages)[-1]))
    assert last["recall@5"] > first["recall@5"] + 0.05 and len(studies) == len(stages[list(stages)[0]][0])


# training


def test_columns_find_their_charts():
    names = ["step", "loss", "queries", "queries/place", "global", "global/temperature", "gradient_norm", "gradient/queries",
             "cosine/queries, global", "AUROC", "mfu"]  # fmt: skip
    assert groups_of(names, probes=["AUROC"]) == {
        "losses": ["loss", "queries", "global"], "gradients": ["gradient_norm", "gradient/queries"],
        "cosines": ["cosine/queries, global"], "probes": ["AUROC"],
    }  # fmt: skip


def test_the_monitor_draws_what_it_is_told_and_stops_a_run():
    monitor = Monitor(probes=["steps seen"])
    assert "Waiting" in monitor.board.value

    def probe(step, model):
        if step >= 2:
            monitor.button.click()
        return {"steps seen": step}

    size = budget("tiny").but(train_studies=64)
    run = asyncio.run(monitor.train(pretrain, "clip", Phantoms(64), budget=size, log_every=1, progress=False, probe=probe))
    assert run.steps == 2 and monitor.button.disabled
    assert "Stopped by the button" in monitor.board.value
    page = training_page(monitor.rows, probes=["steps seen"])
    assert "Step 2: loss" in page and "steps seen 2" in page
    with pytest.raises(KitError, match="step and a loss"):
        monitor.log({"step": 1})


def test_an_error_in_training_ends_the_monitor_and_is_raised():
    def broken(**_):
        raise KitError("the loss is not finite")

    monitor = Monitor()
    with pytest.raises(KitError, match="not finite"):
        asyncio.run(monitor.train(broken))
    assert "Ended by an error" in monitor.board.value
