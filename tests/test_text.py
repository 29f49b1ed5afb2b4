"""Sections, sentences, sides and the tokenizer."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medvlp_kit.errors import KitError
from medvlp_kit.phantoms.report import STYLES, write
from medvlp_kit.phantoms.sampling import World, scene
from medvlp_kit.text import ReportTokenizer, sentences, split_sections, swap_sides

WORLD = World(prior_fraction=0.4)
TEXTS = [write(scene(WORLD, 1, index)).text for index in range(300)]


@pytest.fixture(scope="module")
def tokenizer():
    return ReportTokenizer.train(TEXTS, vocabulary_size=600)


# ---- sections -----------------------------------------------------------------------------------------------------

SECTIONS = [
    # text, findings, impression
    ("FINDINGS: Clear lungs.\nIMPRESSION: Normal.", "Clear lungs.", "Normal."),
    ("Findings: Clear lungs. Impression: Normal.", "Clear lungs.", "Normal."),
    ("findings:\n\nClear\nlungs.\n\nconclusion:\nNormal.", "Clear lungs.", "Normal."),
    ("FINDINGS\nClear lungs.\nIMPRESSION\n1. Normal.\n2. Stable.", "Clear lungs.", "1. Normal.\n2. Stable."),
    ("HALLAZGOS: Sin derrame.\nIMPRESIÓN: Normal.", "Sin derrame.", "Normal."),
    ("Hallazgos: Sin derrame.\r\nImpresion diagnostica: Normal.", "Sin derrame.", "Normal."),
    ("**Findings:** Clear lungs.\n**Impression:** Normal.", "Clear lungs.", "Normal."),
    ("Impression - No change.", "", "No change."),
    ("IMPRESSION: Normal.", "", "Normal."),
    ("FINDINGS: Clear lungs.", "Clear lungs.", ""),
    ("The lungs are clear.\nIMPRESSION: Normal.", "The lungs are clear.", "Normal."),
    ("The lungs are clear. There is no effusion.", "", ""),
    ("", "", ""),
    (
        "                                 FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n \n INDICATION:  Cough.\n\n"
        " TECHNIQUE:  Chest PA and lateral\n \n COMPARISON:  ___\n \n FINDINGS: \n \n There is no focal\n"
        " consolidation.\n"
        " \n IMPRESSION: \n \n No acute process.",
        "There is no focal consolidation.",
        "No acute process.",
    ),
    (
        "FINAL REPORT\nINDICATION: Dyspnea.\n\nCOMPARISON: None.\n\nFINDINGS: Lungs: clear.\nHeart: normal.\n\n"
        "IMPRESSION: Normal.\nNOTIFICATION: Called at 3.",
        "Lungs: clear.\nHeart: normal.",
        "Normal.",
    ),
    ("FINDINGS: The study: was hard. Our impression is good.\nIMPRESSION: Fine.",
     "The study: was hard. Our impression is good.", "Fine."),
    ("FINDINGS: Findings include a line.\nOPINION: Fine.", "Findings include a line.", "Fine."),
    ("FINDINGS: A.\nIMPRESSION: B.\nADDENDUM: C.\nFINDINGS: D.", "A.\nD.", "B."),
]  # fmt: skip


@pytest.mark.parametrize("text, findings, impression", SECTIONS)
def test_sections(text, findings, impression):
    report = split_sections(text)
    assert (report.findings, report.impression) == (findings, impression)
    assert report.text == text


@pytest.mark.parametrize("language", ["en", "es"])
@pytest.mark.parametrize("style", STYLES)
def test_phantom_reports_split_into_what_was_written(language, style):
    for index in range(100):
        report = write(scene(WORLD, 2, index), style=style, language=language)
        assert split_sections(report.text) == report


@given(st.text(max_size=200))
def test_any_text_splits(text):
    assert split_sections(text).text == text
    assert all(sentence.strip() for sentence in sentences(text))


# ---- sentences ----------------------------------------------------------------------------------------------------

SENTENCES = [
    ("One. Two.", ["One.", "Two."]),
    ("A 1.5 cm nodule. It is 2.3 x 1.1 cm.", ["A 1.5 cm nodule.", "It is 2.3 x 1.1 cm."]),
    ("Discussed with Dr. Smith. Thanks.", ["Discussed with Dr. Smith.", "Thanks."]),
    ("It measures approx. 3 cm. Stable.", ["It measures approx. 3 cm.", "Stable."]),
    ("Devices, e.g. lines. None else.", ["Devices, e.g. lines.", "None else."]),
    ("1. Effusion. 2. Edema.", ["Effusion.", "Edema."]),
    ("1. Effusion.\n2. Edema.", ["Effusion.", "Edema."]),
    ("- Effusion\n- Edema\n* Fracture", ["Effusion", "Edema", "Fracture"]),
    ("1) Effusion.\n2) Edema.", ["Effusion.", "Edema."]),
    ("Is it new? Yes! Good.", ["Is it new?", "Yes!", "Good."]),
    ("Seen by J. Smith at 3 p.m. today.", ["Seen by J. Smith at 3 p.m. today."]),
    ("See Fig. 3 for the nodule.", ["See Fig. 3 for the nodule."]),
    ("Nodule of 3 cm. No effusion.", ["Nodule of 3 cm.", "No effusion."]),
    ("Lt. effusion. Rt. lung clear.", ["Lt. effusion.", "Rt. lung clear."]),
    ("Fractures of ribs 5 and 6. No effusion.", ["Fractures of ribs 5 and 6.", "No effusion."]),
    ("(Normal heart.) Clear lungs.", ["(Normal heart.)", "Clear lungs."]),
    ("Lungs: clear.\nHeart: normal", ["Lungs: clear.", "Heart: normal"]),
    ("No hay derrame. Sin cambios aprox. desde ayer.", ["No hay derrame.", "Sin cambios aprox. desde ayer."]),
    ("No period at the end", ["No period at the end"]),
    ("Unchanged... Stable.", ["Unchanged...", "Stable."]),
    (" \n\n. - ", []),
]


@pytest.mark.parametrize("text, expected", SENTENCES)
def test_sentences(text, expected):
    assert sentences(text) == expected


# ---- sides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "language, text, swapped",
    [
        ("en", "Left effusion, right lung clear.", "Right effusion, left lung clear."),
        ("en", "LEFT-sided leftward shift, RLL and LUL", "RIGHT-sided rightward shift, LLL and RUL"),
        ("en", "L > R, Rt. base, dextroscoliosis", "R > L, Lt. base, levoscoliosis"),
        (
            "en",
            "if left untreated; tube left in place; right away",
            "if left untreated; tube left in place; right away",
        ),
        ("en", "bright cleft 5 L/min, 3 L of fluid", "bright cleft 5 L/min, 3 L of fluid"),
        ("en", "Clear lungs.", "Clear lungs."),
        ("es", "Derrame izquierdo, base Derecha, LID", "Derrame derecho, base Izquierda, LII"),
        ("es", "fracturas izdas, nódulo dcho", "fracturas dchas, nódulo izdo"),
    ],
)
def test_swap_sides(language, text, swapped):
    assert swap_sides(text, language) == swapped
    assert swap_sides(swapped, language) == text


WORDS = (
    "left Left LEFT right Right RIGHT lEFt L R LLL RML lt rt untreated in place alone 5 / - , lung away leftward "
    "dextrocardia sided 's L5"
).split()


@given(st.lists(st.sampled_from(WORDS), max_size=12), st.sampled_from(["", " "]))
def test_swapping_twice_gives_the_text_back(words, joint):
    text = joint.join(words)
    assert swap_sides(swap_sides(text)) == text


def test_swapping_an_unknown_language():
    with pytest.raises(KitError, match="language 'it'"):
        swap_sides("sinistra", "it")


# ---- tokenizer ----------------------------------------------------------------------------------------------------


def test_encoding_has_the_promised_shape(tokenizer):
    texts = ["No left effusion.", "Normal.", TEXTS[0]]
    tokens = tokenizer.encode(texts, length=16)
    assert tokens.ids.dtype == torch.int64 and tokens.mask.dtype == torch.bool
    assert tokens.ids.shape == tokens.mask.shape == (3, 16)
    for row, mask in zip(tokens.ids, tokens.mask, strict=True):
        real = row[mask].tolist()
        assert real[0] == 2 and real[-1] == 3 and 0 not in real and real.count(3) == 1
        assert (row[~mask] == 0).all() and mask.tolist() == sorted(mask.tolist(), reverse=True)
    assert tokenizer.encode(["Normal."], length=16).ids.shape[1] < 16  # padded to the longest, not to the length
    assert tokenizer.encode([], length=16).ids.shape == (0, 0)


def test_cutting_keeps_the_beginning_and_the_end_mark(tokenizer):
    whole, cut = tokenizer.encode([TEXTS[0]], length=500).ids[0], tokenizer.encode([TEXTS[0]], length=10).ids[0]
    assert len(whole) > 10 and cut[:-1].tolist() == whole[:9].tolist() and cut[-1] == 3


def test_special_ids(tokenizer):
    assert [tokenizer.vocabulary[token] for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [0, 1, 2, 3, 4]
    assert tokenizer.pad_id == 0 and tokenizer.mask_id == 4
    assert sorted(tokenizer.vocabulary.values()) == list(range(tokenizer.vocabulary_size))
    assert tokenizer.encode(["left [MASK] effusion"], length=9).ids[0, 2] == 4


def test_vocabulary_is_bounded_and_the_texts_need_no_unknown(tokenizer):
    assert 300 < tokenizer.vocabulary_size <= 600
    assert not (tokenizer.encode(TEXTS, length=500).ids == 1).any()
    assert (tokenizer.encode(["漢字"], length=9).ids == 1).any()


def test_words_of_reports_become_whole_tokens(tokenizer):
    for word in ("effusion", "no", "left", "pneumothorax"):
        assert tokenizer.pieces(word) == [word]
    assert "##" in "".join(tokenizer.pieces("effusionless"))


def test_case_numbers_and_accents(tokenizer):
    assert tokenizer.pieces("LEFT Effusion") == tokenizer.pieces("left effusion")
    spanish = ReportTokenizer.train(["año 12 derrame, 3.45 cm neumotórax"] * 3, vocabulary_size=90)
    assert spanish.pieces("2.13") == ["2", ".", "1", "3"]
    assert spanish.pieces("año") != spanish.pieces("ano")
    assert spanish.pieces("neumoto\u0301rax") == spanish.pieces("neumotórax")  # composed and decomposed accents
    assert spanish.decode(spanish.encode(["Neumotórax"], length=20).ids)[0] == "neumotórax"


def test_decoding_gives_the_words_back(tokenizer):
    text = "no left pleural effusion or pneumothorax."
    ids = tokenizer.encode([text, "normal."], length=40).ids
    assert tokenizer.decode(ids) == [text, "normal."]
    assert tokenizer.decode(ids[0]) == text and tokenizer.decode(ids[0].tolist()) == text


def test_training_gives_the_same_vocabulary_in_every_process(tokenizer):
    code = (
        "import json\nfrom medvlp_kit.text import ReportTokenizer\n"
        "from medvlp_kit.phantoms.report import write\nfrom medvlp_kit.phantoms.sampling import World, scene\n"
        "texts = [write(scene(World(prior_fraction=0.4), 1, i)).text for i in range(300)]\n"
        "print(json.dumps(ReportTokenizer.train(texts, vocabulary_size=600).vocabulary))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == tokenizer.vocabulary


def test_saving_and_loading(tokenizer, tmp_path):
    path = tokenizer.save(tmp_path / "deep" / "tokenizer.json")
    assert [entry.name for entry in path.parent.iterdir()] == ["tokenizer.json"]  # no half-written rest
    assert "version" in json.loads(path.read_text(encoding="utf-8"))
    loaded = ReportTokenizer.load(path)
    assert loaded.vocabulary == tokenizer.vocabulary
    assert torch.equal(loaded.encode(TEXTS[:20], length=64).ids, tokenizer.encode(TEXTS[:20], length=64).ids)


def test_a_failed_save_leaves_the_old_file(tokenizer, tmp_path, monkeypatch):
    path = tokenizer.save(tmp_path / "tokenizer.json")
    before = path.read_bytes()

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        tokenizer.save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_transformers_reads_the_same_ids(tokenizer):
    fast = tokenizer.to_transformers()
    texts = ["No left effusion.", "Normal 3.2 cm."]
    ours = tokenizer.encode(texts, length=50)
    theirs = fast(texts, padding=True, return_tensors="pt")
    assert torch.equal(theirs["input_ids"], ours.ids) and torch.equal(theirs["attention_mask"].bool(), ours.mask)
    assert (fast.pad_token_id, fast.unk_token_id, fast.cls_token_id, fast.sep_token_id, fast.mask_token_id) == (
        0,
        1,
        2,
        3,
        4,
    )
    fast(["x " * 99], truncation=True, max_length=5)
    assert tokenizer.encode(["x " * 99], length=50).ids.shape == (1, 50)  # its settings are its own


def test_faults_are_one_line(tokenizer, tmp_path):
    with pytest.raises(KitError, match="text 1 is nan, not a string"):
        tokenizer.encode(["x", float("nan")], length=9)
    with pytest.raises(KitError, match="one string"):
        tokenizer.encode("No effusion.", length=9)
    with pytest.raises(KitError, match="length 2"):
        tokenizer.encode(["x"], length=2)
    with pytest.raises(KitError, match="vocabulary_size 5"):
        ReportTokenizer.train(["x"], vocabulary_size=5)
    with pytest.raises(KitError, match="no words"):
        ReportTokenizer.train(["", " \n"], vocabulary_size=50)
    with pytest.raises(KitError, match="no tokenizer at"):
        ReportTokenizer.load(tmp_path / "missing.json")
    for name, content in (("cut.json", b'{"version": '), ("other.json", b"{}"), ("pickle.json", b"\x80\x04\x95\x00")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(KitError, match="is not a tokenizer"):
            ReportTokenizer.load(tmp_path / name)
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")).save(str(tmp_path / "strange.json"))
    with pytest.raises(KitError, match="other ids for"):
        ReportTokenizer.load(tmp_path / "strange.json")
