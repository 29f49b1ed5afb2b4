"""The phantom studio and the two benches: what they say is what the phantoms, the report and the scores say."""

from __future__ import annotations

import html
import re

import numpy as np
import pytest
import torch

from medvlp_kit import audit, explorers
from medvlp_kit.budget import budget
from medvlp_kit.downstream.classification import auroc
from medvlp_kit.downstream.encode import encode_texts, similarity
from medvlp_kit.downstream.prompts import phrases
from medvlp_kit.errors import KitError
from medvlp_kit.explorers.studio import Studio, scene_of
from medvlp_kit.phantoms import FINDINGS, Phantoms, chest, report
from medvlp_kit.phantoms.scene import SIDED, ZONED
from medvlp_kit.pretrain import pretrain

FIRST = dict(
    finding="Pleural Effusion", side="left", zone="lower", severity="severe", certainty="definite", also="nothing",
    projection="PA", patient=1, exposure=0,
)  # fmt: skip
SHOWN = dict(style="prose", language="en", boxes=True)


@pytest.fixture(scope="module")
def run():
    return pretrain("chexzero", Phantoms(32, image_size=32), budget=budget("tiny").but(train_studies=32), progress=False)


@pytest.fixture(scope="module")
def gallery():
    return Phantoms(40, split="test", image_size=32)


# studio


@pytest.mark.parametrize("finding", FINDINGS)
@pytest.mark.parametrize("side", ["left", "bilateral"])
def test_every_choice_makes_a_true_scene(finding, side):
    scene = scene_of(**FIRST | {"finding": finding, "side": side, "also": "Cardiomegaly"})
    made = scene.sign(finding)
    assert (made.side is None) == (finding not in SIDED) and (made.zone is None) == (finding not in ZONED)
    assert scene.sign("Cardiomegaly") is not None
    assert chest.render([scene], size=32).isfinite().all() and report.write(scene).text
    page = Studio(None)(**FIRST | SHOWN | {"finding": finding, "side": side})
    assert not list(audit._picture_problems(page)) and page.count("<img") == 2


def test_patient_is_anatomy_and_exposure_is_not():
    one, other, stranger = (
        scene_of(**FIRST | {"finding": "nothing"} | change) for change in ({}, {"exposure": 5}, {"patient": 2})
    )
    assert one.draw >> 32 == other.draw >> 32 != stranger.draw >> 32 and one.draw != other.draw
    assert one.normal


def test_the_studio_says_what_the_scene_says(run):
    studio = Studio(run)
    page = studio(**FIRST | SHOWN)
    assert html.escape(report.write(scene_of(**FIRST), style="prose").impression) in page
    assert "severe" in page and "Pleural Effusion drawn" in page and "What CheXzero sees" in page
    spanish = studio(**FIRST | SHOWN | {"language": "es"})
    assert "derrame" in spanish.lower()
    assert "no boxes drawn" in studio(**FIRST | SHOWN | {"boxes": False})
    assert "no boxes drawn" in studio(**FIRST | SHOWN | {"finding": "nothing"})
    with pytest.raises(KitError, match="no finding of the phantoms"):
        studio(**FIRST | SHOWN | {"finding": "Flu"})


def test_the_studio_is_an_explorer(run):
    explorer = explorers.phantom_studio(run)
    before = explorer.board.value
    explorer.controls["side"].value = "right"
    assert explorer.error is None and explorer.board.value != before


# benches


def test_search_shows_the_best_images_in_order(run, gallery):
    explorer = explorers.retrieval_bench(run, gallery, query="No acute finding.")
    text = encode_texts(run.model, run.tokenizer, ["No acute finding."], length=32)
    pictures = explorer.view.__self__.encoded.image
    scores = similarity(run.model, pictures, text)[:, 0]
    shown = [float(number) for number in re.findall(r"<figcaption[^>]*>\d\. (-?\d\.\d{3})", explorer.board.value)]
    assert shown == pytest.approx(scores.sort(descending=True).values[:6].tolist(), abs=6e-4)
    explorer.controls["query"].value = "  "
    assert "the prompt is empty" in explorer.board.value


def test_compare_is_the_auroc_of_the_difference(run, gallery):
    explorer = explorers.prompt_bench(run, gallery, finding="Edema")
    explorer.set(affirms="Edema.", denies="No edema.")
    view = explorer.view.__self__
    labels = view.encoded.labels[:, list(gallery.label_names).index("Edema")]
    area = auroc((view.scores("Edema.") - view.scores("No edema.")).numpy(), labels.numpy())
    assert f"AUROC {area:.3f}" in explorer.board.value
    explorer.controls["finding"].value = "Cardiomegaly"
    assert explorer.controls["affirms"].value == phrases("Cardiomegaly")[0]
    assert explorer.error is None


def test_a_text_is_encoded_once(run, gallery, monkeypatch):
    explorer = explorers.prompt_bench(run, gallery)
    calls = []
    plain = type(run.model).encode_text
    monkeypatch.setattr(type(run.model), "encode_text", lambda self, tokens: calls.append(1) or plain(self, tokens))
    explorer.set(affirms="One.", denies="Two.")
    explorer.set(affirms="Two.", denies="One.")
    assert len(calls) == 2


def test_faults_of_the_bench_are_one_line(run, gallery):
    view = explorers.prompt_bench(run, gallery).view.__self__
    with pytest.raises(KitError, match="no label of these data"):
        view.compare(finding="Flu", affirms="a", denies="b")
    view.encoded.labels[:, 0] = 1
    with pytest.raises(KitError, match="both are needed"):
        view.compare(finding=gallery.label_names[0], affirms="a", denies="b")
    assert np.isfinite(view.scores("ünknown wörds ☂")).all() and torch.is_tensor(view.scores("x"))
