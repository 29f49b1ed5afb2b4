"""Augmentation: each policy keeps what it promises, and the checker catches those that do not."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F

from medvlp_kit.augment import (
    Chain,
    CoupledFlip,
    Crop,
    Intensity,
    MixGen,
    Pairs,
    Policy,
    SampleSentences,
    ShuffleSentences,
    SidelessFlip,
    crop,
    drop_sides,
    facts,
    flip,
    mix_features,
    two_views,
    why_not_mirrored,
)  # fmt: skip
from medvlp_kit.augment.crops import crop_region, share_inside
from medvlp_kit.augment.flips import mirror_region
from medvlp_kit.augment.mixing import joined, partners, together
from medvlp_kit.augment.sentence_level import edit_sentences, facts_of
from medvlp_kit.errors import KitError
from medvlp_kit.labeller import label_findings
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.study import ABSENT, Finding, Region, Report
from medvlp_kit.text import sentences

OTHER = {"left": "right", "right": "left"}
SIZE = 48


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pairs_of(language: str = "en", count: int = 40, seed: int = 1) -> Pairs:
    return Pairs.of(Phantoms(count, seed=seed, split="test", language=language), range(count), size=SIZE)


@pytest.fixture(scope="module", params=["en", "es"])
def pairs(request) -> Pairs:
    return pairs_of(request.param)


@pytest.fixture(scope="module")
def english() -> Pairs:
    return pairs_of("en")


def same(one: Pairs, other: Pairs) -> bool:
    """Bit for bit, masks included."""
    regions = list(map(len, one.regions)) == list(map(len, other.regions)) and all(
        replace(a, mask=None) == replace(b, mask=None) and torch.equal(a.mask, b.mask)
        for first, second in zip(one.regions, other.regions, strict=True)
        for a, b in zip(first, second, strict=True)
    )
    labels = torch.equal(one.labels.nan_to_num(-1), other.labels.nan_to_num(-1))
    return regions and labels and torch.equal(one.images, other.images) and (one.reports, one.findings) == (
        other.reports, other.findings
    )  # fmt: skip


def bare(section: str) -> list[str]:
    return [sentence.rstrip(".") for sentence in sentences(section)]


def read(report: Report) -> dict[str, Finding]:
    return label_findings(report.text, language=report.language)


# ---- flips ------------------------------------------------------------------------------------------------------


def test_flipping_twice_gives_everything_back(pairs):
    once = flip(pairs)
    assert same(flip(once), pairs) and not same(once, pairs)
    assert torch.equal(once.images, pairs.images.flip(-1)) and torch.equal(once.labels, pairs.labels)


def test_a_flip_turns_only_the_rows_it_is_told(english):
    which = torch.arange(len(english)) % 3 == 0
    some, every = flip(english, which), flip(english)
    for row, turned in enumerate(which.tolist()):
        source = every if turned else english
        assert torch.equal(some.images[row], source.images[row]) and some.reports[row] == source.reports[row]
        assert some.findings[row] == source.findings[row]


def test_the_mirrored_report_says_the_other_side_and_nothing_else(pairs):
    for before, after in zip(pairs.reports, flip(pairs).reports, strict=True):
        expected = {name: replace(f, side=OTHER.get(f.side, f.side)) for name, f in read(before).items()}
        assert read(after) == expected
        for section in ("findings", "impression"):
            assert getattr(after, section) in after.text


def test_a_mirrored_box_is_the_box_of_the_mirrored_mask(english):
    seen = 0
    for found in english.regions:
        for region in found:
            mirrored = mirror_region(region, SIZE)
            columns, rows = mirrored.mask.any(0).nonzero(), mirrored.mask.any(1).nonzero()
            assert mirrored.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            assert mirrored.side == OTHER.get(region.side, region.side)
            seen += 1
    assert seen > 30


@pytest.mark.parametrize(
    "text, language, named",
    [
        ("Dextrocardia. Left effusion.", "en", "Dextrocardia"),
        ("Lingular consolidation.", "en", "Lingular"),
        ("Right middle lobe atelectasis.", "en", "middle lobe"),
        ("Prominent left ventricle.", "en", "left ventricle"),
        ("The spleen is enlarged.", "en", "spleen"),
        ("Atelectasia de la língula.", "es", "língula"),
        ("Ventrículo izquierdo prominente.", "es", "Ventrículo izquierdo"),
        ("Erguss links.", "de", "'de'"),
    ],
)
def test_what_has_no_mirror_image_is_refused_in_one_line(english, text, language, named):
    report = Report(text=text, language=language)
    assert named in why_not_mirrored(report)
    odd = english.but(reports=(report, *english.reports[1:]))
    with pytest.raises(KitError) as refused:
        CoupledFlip(1.0)(odd, generator=generator())
    assert named in str(refused.value) and "\n" not in str(refused.value) and "refused='keep'" in str(refused.value)
    kept = CoupledFlip(1.0, refused="keep")(odd, generator=generator())
    assert torch.equal(kept.images[0], odd.images[0]) and torch.equal(kept.images[1], odd.images[1].flip(-1))
    assert kept.reports[0] == report and kept.findings[0] == odd.findings[0]
    sideless = SidelessFlip(1.0, refused="keep")
    if language == "de":  # words of an unknown language cannot be removed either
        with pytest.raises(KitError, match="unknown language"):
            sideless(odd, generator=generator())
    else:
        assert torch.equal(sideless(odd, generator=generator()).images[0], odd.images[0])


def test_a_side_in_the_name_of_a_label_changes_columns(english):
    labels = torch.arange(3.0).repeat(len(english), 1)
    named = english.but(labels=labels, label_names=("effusion", "left lung", "right lung"))
    assert flip(named).labels[0].tolist() == [0, 2, 1] and same(flip(flip(named)), named)
    assert mirror_region(Region("left lung", (0, 0, 2, 2)), 8).label == "right lung"
    with pytest.raises(KitError, match="no label 'left lung' to exchange with"):
        flip(named.but(label_names=("effusion", "nodule", "right lung")))


def test_a_lateral_view_is_refused():
    lateral = Pairs.of(Phantoms(4, seed=1), range(4), size=32, view="lateral")
    with pytest.raises(KitError, match="lateral view both sides lie over each other"):
        CoupledFlip(1.0)(lateral, generator=generator())


def test_words_that_only_look_like_sides_are_not_refused():
    assert why_not_mirrored(Report("The drain was left in place. Small right effusion.")) is None


DROPPED = [
    ("There is a left pleural effusion.", "There is a pleural effusion.", "en"),
    ("There is a left effusion.", "There is an effusion.", "en"),
    ("An R upper zone nodule.", "An upper zone nodule.", "en"),
    ("Left-sided pneumothorax.", "Pneumothorax.", "en"),
    ("A pleural edge is visible on the left, with a small pneumothorax.",
     "A pleural edge is visible, with a small pneumothorax.", "en"),
    ("Consolidation in the left upper lung.", "Consolidation in the upper lung.", "en"),
    ("1. Right upper nodule.\n2. Left effusion.", "1. Upper nodule.\n2. Effusion.", "en"),
    ("?L upper nodule.", "?upper nodule.", "en"),
    ("Opacity in the LLL.", "Opacity in the lower lobe.", "en"),
    ("Left greater than right effusions.", "Effusions.", "en"),
    ("The tube was left in place.", "The tube was left in place.", "en"),
    ("Bilateral effusions.", "Bilateral effusions.", "en"),
    ("Derrame pleural izquierdo.", "Derrame pleural.", "es"),
    ("Neumotórax del lado derecho.", "Neumotórax.", "es"),
    ("Nódulo en la base pulmonar izquierda.", "Nódulo en la base pulmonar.", "es"),
    ("Derrame en el lado izquierdo, leve.", "Derrame, leve.", "es"),
]  # fmt: skip


@pytest.mark.parametrize("text, expected, language", DROPPED)
def test_side_words_go_and_the_sentence_stays(text, expected, language):
    assert drop_sides(text, language) == expected
    assert drop_sides(expected, language) == expected


def test_without_sides_the_findings_and_their_polarity_stay(pairs):
    dropped = SidelessFlip()(pairs, generator=generator())
    for before, after in zip(pairs.reports, dropped.reports, strict=True):
        expected = {name: replace(f, side=None if f.side in OTHER else f.side) for name, f in read(before).items()}
        assert read(after) == expected
    turned = (dropped.images != pairs.images).flatten(1).any(1)
    assert 0 < turned.sum() < len(pairs)  # words go from mirrored and unmirrored pairs alike


# ---- crops ------------------------------------------------------------------------------------------------------


def test_a_crop_is_a_resized_slice():
    images = torch.rand(2, 3, 32, 32, generator=generator())
    whole = torch.tensor([[0.0, 0, 32, 32]]).expand(2, 4)
    torch.testing.assert_close(crop(images, whole), images)
    frames = torch.tensor([[8.0, 4, 24, 20], [0.0, 16, 16, 32]])
    inner = slice(2, -2)  # at the edge the slice knows nothing of the pixels beyond
    for row, (x0, y0, x1, y1) in enumerate(frames.int().tolist()):
        expected = F.interpolate(images[row : row + 1, :, y0:y1, x0:x1], 32, mode="bilinear", align_corners=False)
        torch.testing.assert_close(crop(images, frames)[row, :, inner, inner], expected[0, :, inner, inner])


def test_the_share_inside_a_frame():
    region = Region("Lung Lesion", (4, 4, 8, 8))
    assert share_inside(region, (0, 0, 32, 32)) == 1 and share_inside(region, (8, 0, 32, 32)) == 0
    assert share_inside(region, (6, 5, 32, 32)) == pytest.approx(2 * 3 / 16)
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[4:8, 4:6] = True  # the mask fills only the left half of the box
    assert share_inside(replace(region, mask=mask), (6, 0, 32, 32)) == 0
    assert share_inside(replace(region, mask=mask), (5, 0, 32, 32)) == 0.5


def test_regions_move_with_the_pixels(english):
    """The box after the crop is the box of the mask after the crop, which is cropped as pixels are."""
    frame = (6.0, 3.0, 42.0, 39.0)
    for region in (region for found in english.regions for region in found if share_inside(region, frame) > 0.9):
        moved = crop_region(region, frame, (SIZE, SIZE))
        columns, rows = moved.mask.any(0).nonzero(), moved.mask.any(1).nonzero()
        box = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        assert (box - torch.tensor(moved.box)).abs().max() <= 1.5


def test_what_a_cropped_report_states_is_inside(pairs):
    policy = Crop(scale=(0.2, 0.6))
    frames = policy.frames(pairs, generator())
    cropped = policy(pairs, generator=generator())
    lost = 0
    for row, frame in enumerate(frames.tolist()):
        if torch.equal(cropped.images[row], pairs.images[row]):
            continue  # nothing would have been left of its report
        stated = {name for name, f in read(cropped.reports[row]).items() if f.status != ABSENT}
        before = {name for name, f in read(pairs.reports[row]).items() if f.status != ABSENT}
        inside = {
            name: all(
                region.mask.nonzero().add(0.5).sub(torch.tensor([frame[1], frame[0]]))
                .ge(0).logical_and(region.mask.nonzero().add(0.5).lt(torch.tensor([frame[3], frame[2]])))
                .all(1).float().mean() >= 0.7
                for region in pairs.regions[row] if region.label == name
            )
            for name in before
        }  # fmt: skip
        assert stated == {name for name in before if inside[name]}
        assert facts_of(read(cropped.reports[row]).values()) <= facts_of(read(pairs.reports[row]).values())
        for name in before - stated:
            lost += 1
            assert cropped.labels[row, pairs.label_names.index(name)].isnan()
            assert name not in {finding.name for finding in cropped.findings[row]}
    assert lost > 10


def test_a_crop_that_skips_keeps_every_word(english):
    cropped = Crop(scale=(0.4, 0.8), cut="skip")(english, generator=generator())
    assert cropped.reports == english.reports and cropped.findings == english.findings
    whole = [torch.equal(a, b) for a, b in zip(cropped.images, english.images, strict=True)]
    assert any(whole) and not all(whole)


def test_a_crop_needs_boxes(english):
    assert Crop().needs_boxes and Chain(Intensity(), Crop()).needs_boxes and not CoupledFlip().needs_boxes
    with pytest.raises(KitError, match="nobody knows what a crop cuts"):
        Crop(scale=(0.3, 0.5))(english.but(regions=((),) * len(english)), generator=generator())


# ---- text -------------------------------------------------------------------------------------------------------


def test_shuffled_sentences_state_the_same(pairs):
    shuffled = ShuffleSentences()(pairs, generator=generator())
    changed = 0
    for before, after in zip(pairs.reports, shuffled.reports, strict=True):
        assert read(after) == read(before)
        changed += sentences(after.findings) != sentences(before.findings)
        assert set(bare(after.findings)) == set(bare(before.findings))
    assert changed > len(pairs) / 2


def test_sampled_sentences_state_the_same_in_fewer_words(pairs):
    for policy in (SampleSentences(keep=0.0), SampleSentences(keep=0.3, denials=False)):
        sampled = policy(pairs, generator=generator())
        shorter = 0
        for before, after in zip(pairs.reports, sampled.reports, strict=True):
            options = {"language": before.language, "denials": policy.denials}
            for part in ("text", "findings", "impression"):
                assert facts(getattr(after, part), **options) == facts(getattr(before, part), **options)
            shorter += len(after.text) < len(before.text)
        assert shorter > len(pairs) / 3


def test_sampling_keeps_a_fact_that_stands_once():
    report = Report("Left effusion. Left effusion again. Upright film. No nodule.")
    one = Pairs(torch.zeros(1, 1, 16, 16), (report,), ((),), ((),), torch.zeros(1, 0))
    texts = [SampleSentences(keep=0.0)(one, generator=generator(k)).reports[0].text for k in range(12)]
    assert all(facts(text) == facts(report.text) and len(sentences(text)) == 2 for text in texts)
    fewer = SampleSentences(keep=0.0, denials=False)(one, generator=generator()).reports[0].text
    assert facts(fewer) == {("Pleural Effusion", "present", "left")} and len(sentences(fewer)) == 1


def test_an_order_that_would_change_the_reading_is_not_taken():
    """Behind a head such as "Comparison:" the labeller reads nothing, so that sentence must not come first."""
    report = Report("x", findings="Left effusion. Comparison: none.", impression="Left effusion.")
    report = replace(report, text=f"FINDINGS: {report.findings}\nIMPRESSION: {report.impression}")
    one = Pairs(torch.zeros(1, 1, 16, 16), (report,), ((),), ((),), torch.zeros(1, 0))
    for seed in range(8):
        after = ShuffleSentences()(one, generator=generator(seed)).reports[0]
        assert facts(after.findings) == facts(report.findings)


def test_a_section_left_alone_keeps_its_form():
    report = Report("", findings="1. Nodule.\n2. Effusion.", impression="Cardiomegaly. Edema.")
    report = replace(report, text=f"FINDINGS: {report.findings}\nIMPRESSION: {report.impression}")
    assert edit_sentences(report, lambda section: section) is report
    turned = edit_sentences(report, lambda section: section[::-1] if "Edema." in section else section)
    assert turned.text == "FINDINGS: 1. Nodule.\n2. Effusion.\nIMPRESSION: Edema. Cardiomegaly."
    lines = replace(report, findings="Heart normal\nLungs clear")
    assert edit_sentences(lines, lambda section: section[::-1]).findings == "Lungs clear. Heart normal."


# ---- mixing -----------------------------------------------------------------------------------------------------


def test_mixed_studies_state_what_both_show(pairs):
    mixed = MixGen(probability=1.0)(pairs, generator=generator())
    checked = 0
    for row in range(len(pairs)):
        means = 0.5 * pairs.images[row] + 0.5 * pairs.images  # with every other picture
        rows = [k for k in range(len(pairs)) if torch.equal(mixed.images[row], means[k])]
        assert len(rows) == 1 and rows[0] != row
        other = rows[0]
        assert bool(pairs.findings[row]) == bool(pairs.findings[other])
        assert torch.equal(mixed.labels[row], torch.maximum(pairs.labels[row], pairs.labels[other]))
        assert facts_of(mixed.findings[row]) == facts(
            mixed.reports[row].text, language=mixed.reports[row].language, denials=False
        )
        assert {r.label for r in mixed.regions[row]} == {r.label for k in (row, other) for r in pairs.regions[k]}
        checked += len(mixed.findings[row]) > len(pairs.findings[row])
    assert checked > 10


def test_a_denial_that_the_partner_contradicts_is_dropped():
    first = Report("Left effusion. No pneumothorax. No fracture.")
    second = Report("Right pneumothorax. The costophrenic angles are sharp.")
    text = joined(first, second).text
    assert "No pneumothorax" not in text and "sharp" not in text and "No fracture." in text
    assert facts(text, denials=False) == {("Pleural Effusion", "present", "left"), ("Pneumothorax", "present", "right")}
    with pytest.raises(KitError, match="within one language"):
        joined(first, Report("Derrame.", language="es"))


def test_unknown_labels_stay_unknown_in_a_mixture(english):
    labels = english.labels.clone()
    labels[:, 0] = torch.nan
    mixed = MixGen(probability=1.0)(english.but(labels=labels), generator=generator())
    assert mixed.labels[:, 0].isnan().all() and not mixed.labels[:, 1:].isnan().any()


def test_findings_on_both_sides_become_bilateral():
    left, right = Finding("Atelectasis", side="left", zone="upper"), Finding("Atelectasis", side="right", zone="upper")
    assert together((left, right)) == (Finding("Atelectasis", side="bilateral", zone="upper"),)
    doubt = Finding("Atelectasis", "uncertain", side="right")
    assert together((doubt, left)) == (left,)  # as the labeller joins statements


def test_partners_are_one_cycle():
    for count in (1, 2, 7, 20):
        other = partners(count, generator())
        place, seen = 0, []
        for _ in range(count):
            seen.append(place)
            place = int(other[place])
        assert sorted(seen) == list(range(count)) and place == 0


def test_mixed_features_share_partner_and_weight():
    image, text = F.normalize(torch.randn(2, 9, 16, generator=generator(), dtype=torch.float64), dim=-1)
    mixed_image, mixed_text = mix_features(image, text, generator=generator(3))
    for row in range(9):
        for part, mixed in ((image, mixed_image), (text, mixed_text)):
            assert mixed[row].norm().item() == pytest.approx(1)
        fits = []
        for other in set(range(9)) - {row}:  # solve mixed = a own + b other; both must be exact, with one ratio
            found = []
            for part, mixed in ((image, mixed_image), (text, mixed_text)):
                basis = torch.stack([part[row], part[other]], dim=1)
                weights = torch.linalg.lstsq(basis, mixed[row, :, None]).solution[:, 0]
                found.append((float((basis @ weights - mixed[row]).norm()), float(weights[0] / weights.sum())))
            fits.append((max(error for error, _ in found), found[0][1], found[1][1]))
        error, for_image, for_text = min(fits)
        assert error < 1e-9 and for_image == pytest.approx(for_text) and 0.5 <= for_image <= 1
    with pytest.raises(KitError, match="of one shape"):
        mix_features(image, text[:4])


# ---- chance, chains, views --------------------------------------------------------------------------------------

EVERY = (
    Intensity(), CoupledFlip(), SidelessFlip(), Crop(), ShuffleSentences(), SampleSentences(), MixGen(probability=0.5),
    Chain(CoupledFlip(), Crop(), Intensity()),
)  # fmt: skip


@pytest.mark.parametrize("policy", EVERY, ids=lambda policy: policy.name)
def test_chance_comes_from_the_generator_alone(english, policy):
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    first, again, other = (policy(english, generator=generator(seed)) for seed in (5, 5, 6))
    assert same(first, again) and not same(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert policy.guarantee and eval(repr(policy)) == policy


def test_the_mildest_policies_change_nothing(english):
    for policy in (CoupledFlip(0.0), Crop(scale=(1, 1)), Crop(probability=0.0), SampleSentences(keep=1.0), MixGen(0.0)):
        assert same(policy(english, generator=generator()), english), policy.name
    torch.testing.assert_close(Intensity(0, 0, 0, 0)(english, generator=generator()).images, english.images)


def test_intensity_is_the_formula(english):
    policy = Intensity(noise=0.0)
    drawn = 2 * torch.rand(3, len(english), 1, 1, 1, generator=generator(4)) - 1
    for row in (0, 7):
        gamma, contrast, brightness = (float(drawn[k, row]) for k in range(3))
        x = english.images[row].double() ** torch.tensor(policy.gamma * gamma, dtype=torch.float64).exp()
        x = (x - 0.5) * torch.tensor(policy.contrast * contrast).exp() + 0.5 + policy.brightness * brightness
        found = policy(english, generator=generator(4)).images[row]
        torch.testing.assert_close(found, x.clamp(0, 1).float(), atol=1e-5, rtol=0)


def test_two_views_are_two_draws(english):
    one, two = two_views(english, Chain(CoupledFlip(), Intensity()), generator=generator())
    assert not torch.equal(one.images, two.images)
    assert same(one, Chain(CoupledFlip(), Intensity())(english, generator=generator()))


def test_a_chain_promises_what_all_promise():
    assert Chain(CoupledFlip(), Intensity()).promises == CoupledFlip.promises
    assert Chain(CoupledFlip(), Crop()).promises == Crop.promises
    assert Chain(CoupledFlip(), Crop(scale=(0.5, 1.0))).name == "Chain(CoupledFlip, Crop(scale=(0.5, 1.0)))"
    with pytest.raises(KitError, match="give policies"):
        Chain(torch.nn.Identity())


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: CoupledFlip(1.5), "probability=1.5"),
        (lambda: CoupledFlip(refused="drop"), "refused studies"),
        (lambda: Crop(scale=(0.9, 0.2)), "low <= high"),
        (lambda: Crop(cut="shrink"), "cut findings"),
        (lambda: SampleSentences(keep=2), "keep=2"),
        (lambda: MixGen(weight=1.0), "weight=1.0"),
        (lambda: Intensity(noise=-1), "noise=-1"),
        (lambda: pairs_of(count=2).but(reports=()), "B of each"),
    ],
)
def test_bad_settings_are_one_line(build, message):
    with pytest.raises(KitError, match=message):
        build()


@dataclass(frozen=True)
class Nothing(Policy):
    def __call__(self, pairs, *, generator):
        return pairs


def test_a_policy_of_ones_own_needs_only_a_call(english):
    assert same(Chain(Nothing(), CoupledFlip(1.0))(english, generator=generator()), flip(english))
