"""Policies in collation and in the loop, and the mixup objective."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from medvlp_kit.augment import Chain, CoupledFlip, Crop, Intensity, flip
from medvlp_kit.augment.collection import augmented, generator_of
from medvlp_kit.augment.pairs import Pairs
from medvlp_kit.budget import budget
from medvlp_kit.collate import collate
from medvlp_kit.errors import KitError
from medvlp_kit.model import ForwardPass
from medvlp_kit.objectives.contrastive import InfoNCE
from medvlp_kit.objectives.mixup import FeatureMixup
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.pretrain import pretrain
from medvlp_kit.recipes import build
from medvlp_kit.text import ReportTokenizer

TINY = budget("tiny").but(train_studies=48, epochs=2, batch_size=16)  # 6 steps
INDICES = range(4, 16)


@pytest.fixture(scope="module")
def phantoms() -> Phantoms:
    return Phantoms(48, seed=0)


@pytest.fixture(scope="module")
def tokenizer(phantoms) -> ReportTokenizer:
    return ReportTokenizer.train([phantoms.report(i).text for i in range(48)], vocabulary_size=600)


@pytest.fixture
def batch_of(phantoms, tokenizer):
    def of(**options):
        options = {"texts": ("impression",), "findings": True, "image_size": 32, "text_length": 64} | options
        return collate(phantoms, INDICES, tokenizer=tokenizer, **options)

    return of


def test_a_batch_holds_what_the_policy_made(phantoms, batch_of):
    plain, batch = batch_of(), batch_of(augment=CoupledFlip(1.0))
    expected = flip(Pairs.of(phantoms, INDICES, size=32))
    assert torch.equal(batch.images, plain.images.flip(-1)) and torch.equal(batch.labels, plain.labels)
    assert batch.sentences == tuple(report.impression for report in expected.reports) != plain.sentences
    assert batch.findings == expected.findings and batch.indices == plain.indices


def test_chance_is_a_function_of_seed_and_studies(batch_of):
    policy = Chain(CoupledFlip(), Intensity())
    one, again, other = (batch_of(augment=policy, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.images, again.images) and one.sentences == again.sentences
    assert not torch.equal(one.images, other.images)
    assert generator_of(0, (1, 2)).initial_seed() != generator_of(0, (2, 1)).initial_seed()


def test_boxes_are_drawn_only_for_policies_that_need_them(phantoms, batch_of, monkeypatch):
    asked = []
    monkeypatch.setattr(Phantoms, "regions", lambda self, index, **options: asked.append(index) or ())
    batch_of(augment=CoupledFlip())
    assert asked == []
    with pytest.raises(KitError, match="nobody knows what a crop cuts"):
        batch_of(augment=Crop(scale=(0.3, 0.4)))
    assert asked


@pytest.mark.parametrize("views", [("frontal", "lateral"), ("frontal x2",)])
def test_one_view_at_its_own_size(batch_of, views):
    with pytest.raises(KitError, match="ask for one view"):
        batch_of(augment=CoupledFlip(), views=views)


def test_an_augmented_batch_is_no_other_batch(phantoms):
    made = augmented(phantoms, tuple(INDICES), CoupledFlip(1.0), size=32, views=("frontal",), seed=0)
    assert made.regions(5, size=32) == () and len(made) == 48
    with pytest.raises(KitError, match="not frontal of 64"):
        made.images([5], size=64)
    with pytest.raises(KitError, match="ask the collection"):
        made.study(5)


class Interrupted(Exception):
    pass


def test_a_run_with_a_policy_resumes_to_the_same_bits_and_knows_its_policy(phantoms, tmp_path):
    options = dict(budget=TINY, progress=False, augment=CoupledFlip(), checkpoint_every=2, log_every=1)
    whole = pretrain("chexzero", phantoms, out=tmp_path / "whole", **options)

    def stop(row):
        if row["step"] == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        pretrain("chexzero", phantoms, out=tmp_path / "cut", on_log=stop, **options)
    with pytest.raises(KitError, match="another augment"):
        pretrain("chexzero", phantoms, out=tmp_path / "cut", resume=True, **(options | {"augment": None}))
    with pytest.raises(KitError, match="another augment"):
        pretrain("chexzero", phantoms, out=tmp_path / "cut", resume=True, **(options | {"augment": CoupledFlip(0.1)}))
    pretrain("chexzero", phantoms, out=tmp_path / "cut", resume=True, **options)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert json.loads((whole.folder / "run.json").read_text())["augment"] == repr(CoupledFlip())
    plain = pretrain("chexzero", phantoms, out=tmp_path / "plain", **(options | {"augment": None}))
    assert "augment" not in json.loads((plain.folder / "run.json").read_text())
    assert plain.history["loss"].tolist() != whole.history["loss"].tolist()


def test_feature_mixup_is_info_nce_when_it_mixes_nothing(phantoms, tokenizer, batch_of):
    torch.manual_seed(0)
    model = build("clip", budget="tiny", vocabulary_size=tokenizer.vocabulary_size).model
    batch = batch_of(text_length=32)
    plain = InfoNCE()(ForwardPass(model, batch)).loss
    torch.testing.assert_close(FeatureMixup(weight=0.0)(ForwardPass(model, batch)).loss, plain)
    torch.manual_seed(1)
    half = FeatureMixup()(ForwardPass(model, batch))
    torch.testing.assert_close(half.loss, (half.logs["plain"] + half.logs["mixed"]) / 2)
    assert half.loss != plain
    half.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.image_projection.parameters())
    with pytest.raises(KitError, match="weight=2"):
        FeatureMixup(weight=2)
