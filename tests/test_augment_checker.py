"""The checker: honest policies pass in both languages, and every kind of lie is caught and named."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from medvlp_kit.augment import (
    BlindCrop,
    BlindFlip,
    Chain,
    CoupledFlip,
    Crop,
    Intensity,
    MixGen,
    Policy,
    SampleSentences,
    ShuffleSentences,
    SidelessFlip,
    check,
    flip,
    prove,
)  # fmt: skip
from medvlp_kit.augment.flips import flip_images
from medvlp_kit.augment.sides import mirrored_text
from medvlp_kit.errors import KitError
from medvlp_kit.phantoms import Phantoms

HONEST = (
    Intensity(), CoupledFlip(), SidelessFlip(), Crop(scale=(0.3, 0.8)), Crop(cut="skip"), ShuffleSentences(),
    SampleSentences(), SampleSentences(denials=False), MixGen(probability=1.0),
    Chain(CoupledFlip(), Crop(), MixGen(), SampleSentences(), Intensity()),
)  # fmt: skip


@pytest.fixture(scope="module")
def phantoms() -> Phantoms:
    return Phantoms(32, seed=2, split="test")


@pytest.mark.parametrize("policy", HONEST, ids=lambda policy: policy.name)
def test_honest_policies_pass(phantoms, policy):
    found = check(policy, phantoms)
    assert found.passed, str(found)
    assert found.statements > 100 and found.moved > 0.3 and found.left_out < 5
    assert "keeps its word" in str(found)


def test_honest_policies_pass_in_spanish():
    found = check(Chain(CoupledFlip(), Crop(), SampleSentences()), Phantoms(32, seed=2, split="test", language="es"))
    assert found.passed, str(found)


@dataclass(frozen=True)
class PictureOnly(Policy):
    """Flips the picture and tells nobody: regions, findings and report still agree with each other."""

    def __call__(self, pairs, *, generator):
        return pairs.but(images=pairs.images.flip(-1))


@dataclass(frozen=True)
class WordsOnly(Policy):
    def __call__(self, pairs, *, generator):
        return pairs.but(reports=tuple(map(mirrored_text, pairs.reports)))


@dataclass(frozen=True)
class Forgetful(Policy):
    """Flips picture, words and findings, and forgets the regions."""

    def __call__(self, pairs, *, generator):
        return flip(pairs).but(regions=pairs.regions)


@dataclass(frozen=True)
class FirstSentence(Policy):
    """Promises to lose nothing and keeps the impression's first sentence."""

    def __call__(self, pairs, *, generator):
        short = tuple(replace(r, text=r.impression.split(".")[0] + ".") for r in pairs.reports)
        return pairs.but(reports=short)


@dataclass(frozen=True)
class Modest(FirstSentence):
    """The same, and says so."""

    promises: ClassVar[tuple[str, ...]] = ("nothing false",)


@dataclass(frozen=True)
class AddPictures(Policy):
    """Adds the next picture and leaves the report: what the report denies may now be there."""

    def __call__(self, pairs, *, generator):
        return pairs.but(images=(pairs.images + pairs.images.roll(1, 0)) / 2)


@pytest.mark.parametrize(
    "policy, aspects",
    [
        (BlindFlip(1.0), {"picture", "regions"}),
        (PictureOnly(), {"picture"}),
        (WordsOnly(), {"picture", "regions", "findings"}),
        (Forgetful(), {"regions"}),
        (BlindCrop(scale=(0.1, 0.3)), {"picture", "regions"}),
        (FirstSentence(), {"findings"}),
        (AddPictures(), {"picture"}),
    ],
    ids=lambda value: value.name if isinstance(value, Policy) else "",
)
def test_lies_are_caught_and_named(phantoms, policy, aspects):
    found = check(policy, phantoms)
    assert not found.passed and {aspect for aspect, count in found.broken.items() if count} == aspects
    assert str(found).startswith(f"{policy.name} breaks agreement") and "study" in str(found)


def test_a_policy_is_held_to_its_own_promise(phantoms):
    assert check(Modest(), phantoms).passed and not check(FirstSentence(), phantoms).passed


def test_the_step_of_a_chain_that_lies_is_named(phantoms):
    with pytest.raises(KitError) as found:
        prove(Chain(Intensity(), BlindFlip(), ShuffleSentences()), phantoms)
    assert str(found.value).startswith("BlindFlip breaks agreement") and "\n" not in str(found.value)
    assert prove(Chain(Intensity(), CoupledFlip()), phantoms).passed


def test_a_flip_of_all_films_breaks_every_one_sided_statement(phantoms):
    found = check(BlindFlip(1.0), phantoms)
    sided = {(row, f.name) for row in range(32) for f in phantoms.findings(row) if f.side in ("left", "right")}
    assert {(case.study, case.finding) for case in found.cases if case.aspect == "regions"} == sided
    seen = {(case.study, case.finding) for case in found.cases if case.aspect == "picture"}
    assert seen <= sided and len(seen) > 0.8 * len(sided)


def test_the_checker_needs_the_truth(phantoms):
    with pytest.raises(KitError, match="whose truth is known"):
        check(CoupledFlip(), phantoms.subset([0, 1]))


def test_it_looks_at_pixels_not_at_what_the_policy_says(phantoms):
    """The difference picture of a finding is mirrored with the film."""
    from medvlp_kit.augment.checker import _visible, without
    from medvlp_kit.augment.pairs import Pairs

    pairs = Pairs.of(phantoms, range(8), size=48)
    bare = without([phantoms.scene(i) for i in range(8)], size=48)
    plain, turned = (_visible(pairs, bare, policy, 0) for policy in (None, PictureOnly()))
    for name in plain:
        torch.testing.assert_close(plain[name], turned[name].flip(-1))
    assert torch.equal(flip_images(pairs.images, torch.ones(8, dtype=torch.bool)), pairs.images.flip(-1))
