"""The finding labeller: agreement with phantom scenes, and sentences as people write them."""

from __future__ import annotations

import pytest

from medvlp_kit.errors import KitError
from medvlp_kit.phantoms.report import STYLES, negative_prompts, normal_prompts, prompts, write
from medvlp_kit.phantoms.sampling import World, scene
from medvlp_kit.phantoms.scene import FINDINGS, SIDED, Scene
from medvlp_kit.study import Finding
from medvlp_kit.text import label_findings

P, U, A = "present", "uncertain", "absent"
# Sentence -> finding: status, or (status, side), or (status, side, zone). Written by hand, not by the phantoms.
ENGLISH = [
    ("No pneumothorax or pleural effusion.", {"Pneumothorax": A, "Pleural Effusion": A}),
    ("No pneumothorax, effusion or consolidation.", {"Pneumothorax": A, "Pleural Effusion": A, "Consolidation": A}),
    ("No pneumothorax, small left pleural effusion.", {"Pneumothorax": A, "Pleural Effusion": (P, "left")}),
    ("No pneumothorax but there is a small left effusion.", {"Pneumothorax": A, "Pleural Effusion": (P, "left")}),
    (
        "There is no evidence of pneumothorax; however, a right effusion has developed.",
        {"Pneumothorax": A, "Pleural Effusion": (P, "right")},
    ),
    ("No change in the left effusion.", {"Pleural Effusion": (P, "left")}),
    ("No significant interval change in moderate bilateral pleural effusions.", {"Pleural Effusion": (P, "bilateral")}),
    ("Bilateral effusions without significant change.", {"Pleural Effusion": (P, "bilateral")}),
    ("The left pneumothorax has resolved.", {"Pneumothorax": A}),
    ("The left pneumothorax has nearly resolved.", {"Pneumothorax": (P, "left")}),
    ("Interval resolution of the right effusion.", {"Pleural Effusion": A}),
    ("Partial resolution of the right effusion.", {"Pleural Effusion": (P, "right")}),
    ("The effusion has not resolved.", {"Pleural Effusion": P}),
    ("A small apical pneumothorax cannot be excluded.", {"Pneumothorax": U}),
    ("Cannot exclude a small left effusion.", {"Pleural Effusion": (U, "left")}),
    ("A small effusion is not excluded.", {"Pleural Effusion": U}),
    (
        "Left lower lobe opacity may represent atelectasis or consolidation.",
        {"Atelectasis": (U, "left", "lower"), "Consolidation": (U, "left", "lower")},
    ),
    (
        "Right basilar opacity, atelectasis versus consolidation.",
        {"Atelectasis": (U, "right", "lower"), "Consolidation": (U, "right", "lower")},
    ),
    (
        "Possible left lower lobe consolidation, no effusion.",
        {"Consolidation": (U, "left", "lower"), "Pleural Effusion": A},
    ),
    ("The heart is not enlarged.", {"Cardiomegaly": A}),
    ("Heart size is normal.", {"Cardiomegaly": A}),
    ("The heart is mildly enlarged.", {"Cardiomegaly": P}),
    ("The heart is borderline enlarged.", {"Cardiomegaly": U}),
    (
        "The cardiac silhouette is enlarged but the lungs are clear.",
        {"Cardiomegaly": P, "Consolidation": A, "Atelectasis": A, "Edema": A, "Lung Lesion": A},
    ),
    ("Cardiomediastinal silhouette is within normal limits.", {"Cardiomegaly": A, "Enlarged Cardiomediastinum": A}),
    ("The mediastinum is widened.", {"Enlarged Cardiomediastinum": P}),
    ("No mediastinal widening.", {"Enlarged Cardiomediastinum": A}),
    ("Left greater than right bibasilar atelectasis.", {"Atelectasis": (P, "bilateral", "lower")}),
    ("Bilateral pleural effusions, right greater than left.", {"Pleural Effusion": (P, "bilateral")}),
    ("Left and right pleural effusions.", {"Pleural Effusion": (P, "bilateral")}),
    ("Effusion on the left but not on the right.", {"Pleural Effusion": (P, "left")}),
    ("On the left, there is a moderate effusion.", {"Pleural Effusion": (P, "left")}),
    (
        "The right lung is clear and there is a left effusion.",
        {"Pleural Effusion": (P, "left"), "Consolidation": A, "Atelectasis": A, "Edema": A, "Lung Lesion": A},
    ),
    (
        "Small left effusion and right basal atelectasis.",
        {"Pleural Effusion": (P, "left"), "Atelectasis": (P, "right", "lower")},
    ),
    (
        "Moderate right effusion with adjacent atelectasis.",
        {"Pleural Effusion": (P, "right"), "Atelectasis": (P, "right")},
    ),
    (
        "Atelectasis and effusion at the left base.",
        {"Atelectasis": (P, "left", "lower"), "Pleural Effusion": (P, "left")},
    ),
    (
        "No focal consolidation, effusion, or pneumothorax is identified.",
        {"Consolidation": A, "Pleural Effusion": A, "Pneumothorax": A},
    ),
    ("Neither pneumothorax nor effusion is seen.", {"Pneumothorax": A, "Pleural Effusion": A}),
    ("Pneumothorax is not seen.", {"Pneumothorax": A}),
    ("Previously seen effusion is no longer visible.", {"Pleural Effusion": A}),
    ("Pleural effusions have cleared.", {"Pleural Effusion": A}),
    ("Negative for acute fracture.", {"Fracture": A}),
    ("Lungs are free of consolidation.", {"Consolidation": A}),
    ("No displaced rib fracture; old healed fracture of the left clavicle.", {"Fracture": (P, "left")}),
    ("Pneumothorax: none. Effusion: small, left.", {"Pneumothorax": A, "Pleural Effusion": (P, "left")}),
    ("Evaluate for pneumothorax.", {}),
    ("History of pulmonary edema.", {}),
    ("Rule out pneumonia or effusion.", {}),
    (
        "INDICATION: Shortness of breath, rule out effusion. FINDINGS: Normal heart size. IMPRESSION: No effusion.",
        {"Cardiomegaly": A, "Pleural Effusion": A},
    ),
    ("No pericardial effusion.", {}),
    ("Subcutaneous emphysema and soft tissue edema.", {}),
    ("Left subclavian catheter with tip in the right atrium.", {"Support Devices": (P, "left")}),
    ("Right internal jugular line terminates in the SVC.", {"Support Devices": (P, "right")}),
    ("Endotracheal tube has been removed.", {"Support Devices": A}),
    ("ET tube in standard position, no pneumothorax.", {"Support Devices": P, "Pneumothorax": A}),
    ("Interval removal of right chest tube without pneumothorax.", {"Support Devices": A, "Pneumothorax": A}),
    ("Findings suggestive of mild interstitial edema.", {"Edema": U}),
    ("Findings consistent with mild pulmonary edema.", {"Edema": P}),
    ("Pulmonary oedema is unlikely.", {"Edema": A}),
    ("Mild pulmonary vascular congestion without frank edema.", {"Edema": A}),
    ("Improving pulmonary edema.", {"Edema": P}),
    ("A 1.2 cm nodule in the right upper lobe is suspicious for malignancy.", {"Lung Lesion": (P, "right", "upper")}),
    ("No suspicious nodule or mass.", {"Lung Lesion": A}),
    ("RLL consolidation, LUL nodule.", {"Consolidation": (P, "right", "lower"), "Lung Lesion": (P, "left", "upper")}),
    ("Consolidation in the RML and lingula.", {"Consolidation": (P, "bilateral")}),
    ("Mass effect on the trachea.", {}),
    ("Question small left apical pneumothorax.", {"Pneumothorax": (U, "left")}),
    ("Probable atelectasis at the right base.", {"Atelectasis": (U, "right", "lower")}),
    (
        "Blunting of the left costophrenic angle may reflect a tiny effusion or pleural thickening.",
        {"Pleural Effusion": (U, "left")},
    ),
    ("Costophrenic angles are sharp.", {"Pleural Effusion": A}),
    ("No new consolidation.", {"Consolidation": A}),
    (
        "Low lung volumes with bibasilar atelectasis and no definite consolidation.",
        {"Atelectasis": (P, "bilateral", "lower"), "Consolidation": A},
    ),
    ("No effusion and the heart is enlarged.", {"Pleural Effusion": A, "Cardiomegaly": P}),
    ("There is left effusion and the pneumothorax has resolved.", {"Pleural Effusion": (P, "left"), "Pneumothorax": A}),
    ("Left rib fractures without pneumothorax.", {"Fracture": (P, "left"), "Pneumothorax": A}),
    ("No fracture other than a healing left fifth rib fracture.", {"Fracture": (P, "left")}),
    ("The effusion was not present on the prior study.", {"Pleural Effusion": P}),
    ("Effusion, if present, is small.", {"Pleural Effusion": U}),
    (
        "No evidence of recurrent or residual pneumothorax after chest tube removal.",
        {"Pneumothorax": A, "Support Devices": A},
    ),
    (
        "Consolidation rather than atelectasis in the left lower lobe.",
        {"Consolidation": (P, "left", "lower"), "Atelectasis": A},
    ),
    ("Bones are intact.", {"Fracture": A}),
    ("No fracture.", {"Fracture": A}),
    ("If left untreated, an effusion may develop.", {}),
    ("Nodular opacity projecting over the left midlung.", {"Lung Lesion": (P, "left", "middle")}),
    ("Chest x-ray shows pneumothorax (arrow), right side.", {"Pneumothorax": (P, "right")}),
    (
        "The lungs are clear without consolidation or effusion.",
        {"Consolidation": A, "Atelectasis": A, "Edema": A, "Lung Lesion": A, "Pleural Effusion": A},
    ),
    ("No acute cardiopulmonary process.", {}),
    # taken from the kinds of mistake seen on published clinical notes, in other words
    ("Consolidation with possible infectious cause in the right base.", {"Consolidation": (P, "right", "lower")}),
    (
        "Signs of left hydrothorax, right basal consolidation and suspected mass in the LUL.",
        {"Pleural Effusion": (P, "left"), "Consolidation": (P, "right", "lower"), "Lung Lesion": (U, "left", "upper")},
    ),
    ("Left lateral chest radiograph shows consolidation.", {"Consolidation": (P, None)}),
    ("Bilateral patchy and confluent airspace opacities.", {"Consolidation": (P, "bilateral")}),
    ("Bilateral opacities, endotracheal tube, jugular catheter.", {"Support Devices": (P, None)}),
    ("Multifocal consolidations in both lungs, except for the left upper zone.", {"Consolidation": (P, "bilateral")}),
    ("The patient was intubated.", {"Support Devices": P}),
    ("Bilateral consolidation in the mid and lower zones.", {"Consolidation": (P, "bilateral", None)}),
    ("Edema, more on the right compared to the left.", {"Edema": P}),
    ("The lungs are not clear.", {}),
    ("Clear lung fields.", {"Consolidation": A, "Atelectasis": A, "Edema": A, "Lung Lesion": A}),
    ("Pacemaker with lead fracture.", {"Support Devices": P}),
    ("Increased cardio-thoracic ratio.", {"Cardiomegaly": P}),
    ("Mass-like lesion in the left upper lobe.", {"Lung Lesion": (P, "left", "upper")}),
    ("Pneumothorax on the right with interstitial infiltrates in the left lung.", {"Pneumothorax": (P, "right")}),
]
SPANISH = [
    ("Sin derrame pleural ni neumotórax.", {"Pleural Effusion": A, "Pneumothorax": A}),
    ("No se observan consolidaciones.", {"Consolidation": A}),
    ("Derrame pleural izquierdo sin cambios.", {"Pleural Effusion": (P, "left")}),
    ("Sin cambios en el derrame pleural izquierdo.", {"Pleural Effusion": (P, "left")}),
    ("No se puede descartar un pequeño derrame derecho.", {"Pleural Effusion": (U, "right")}),
    ("Un pequeño neumotórax no se puede descartar.", {"Pneumothorax": U}),
    ("Se descarta neumotórax.", {"Pneumothorax": A}),
    ("El neumotórax derecho se ha resuelto.", {"Pneumothorax": A}),
    ("El neumotórax derecho ya no se observa.", {"Pneumothorax": A}),
    ("Resolución parcial del neumotórax derecho.", {"Pneumothorax": (P, "right")}),
    ("Cardiomegalia leve, sin derrame.", {"Cardiomegaly": P, "Pleural Effusion": A}),
    ("El corazón no está agrandado.", {"Cardiomegaly": A}),
    ("Silueta cardiaca de tamaño normal.", {"Cardiomegaly": A}),
    ("Ensanchamiento mediastínico.", {"Enlarged Cardiomediastinum": P}),
    (
        "Opacidad en la base izquierda que podría corresponder a atelectasia o consolidación.",
        {"Atelectasis": (U, "left", "lower"), "Consolidation": (U, "left", "lower")},
    ),
    (
        "Consolidación en LID y nódulo en LSI.",
        {"Consolidation": (P, "right", "lower"), "Lung Lesion": (P, "left", "upper")},
    ),
    ("Derrames pleurales bilaterales, de predominio derecho.", {"Pleural Effusion": (P, "bilateral")}),
    ("Fractura costal izquierda no desplazada.", {"Fracture": (P, "left")}),
    ("Senos costofrénicos libres.", {"Pleural Effusion": A}),
    ("Campos pulmonares limpios.", {"Consolidation": A, "Atelectasis": A, "Edema": A, "Lung Lesion": A}),
    ("Signos de edema pulmonar intersticial.", {"Edema": P}),
    ("Hallazgos sugestivos de edema pulmonar.", {"Edema": U}),
    ("Antecedentes de derrame pleural.", {}),
    ("Radiografía para descartar neumotórax.", {}),
    ("Sin derrame pericárdico.", {}),
    (
        "No hay neumotórax, pero existe un pequeño derrame derecho.",
        {"Pneumothorax": A, "Pleural Effusion": (P, "right")},
    ),
    ("Catéter venoso central derecho con el extremo en la aurícula derecha.", {"Support Devices": (P, "right")}),
    ("Marcapasos izquierdo.", {"Support Devices": (P, "left")}),
    ("El derrame no estaba presente en el estudio previo.", {"Pleural Effusion": P}),
    (
        "Derrame pleural izquierdo y atelectasia basal derecha.",
        {"Pleural Effusion": (P, "left"), "Atelectasis": (P, "right", "lower")},
    ),
    ("Ausencia de nódulos o masas.", {"Lung Lesion": A}),
    (
        "Atelectasia vs consolidación en base derecha.",
        {"Atelectasis": (U, "right", "lower"), "Consolidation": (U, "right", "lower")},
    ),
]


@pytest.mark.parametrize(
    "language, sentence, expected", [("en", *row) for row in ENGLISH] + [("es", *row) for row in SPANISH]
)
def test_sentences_as_people_write_them(language, sentence, expected):
    found = label_findings(sentence, language=language)
    assert set(found) == set(expected), found
    for name, wanted in expected.items():
        wanted = (wanted,) if isinstance(wanted, str) else wanted
        assert (found[name].status, found[name].side, found[name].zone)[: len(wanted)] == wanted, found[name]
        assert found[name].name == name


def truth(exam: Scene) -> dict[str, tuple]:
    return {s.finding: ("present" if s.certainty == "definite" else "uncertain", s.side, s.zone) for s in exam.signs}


@pytest.mark.parametrize("language", ["en", "es"])
def test_labels_agree_with_the_scene(language):
    world = World(prior_fraction=0.4, possible_fraction=0.2)
    studies, right, severity = 2000, 0, []
    for index in range(studies):
        exam = scene(world, 21, index)
        found = label_findings(write(exam, language=language).text, language=language)
        said = {name: (f.status, f.side, f.zone) for name, f in found.items() if f.status != "absent"}
        right += said == truth(exam)  # all findings, all sides, all zones, and nothing else
        severity += [found[s.finding].severity == s.severity for s in exam.signs if found[s.finding].severity]
    assert right / studies >= 0.99, right / studies
    assert len(severity) > 500 and sum(severity) / len(severity) > 0.9


@pytest.mark.parametrize("style", STYLES)
def test_every_style_is_read(style):
    world = World(prior_fraction=0.4, possible_fraction=0.2, normal_fraction=0.1)
    scenes = [scene(world, 22, index) for index in range(150)]
    right = 0
    for exam in scenes:
        found = label_findings(write(exam, style=style).text)
        right += {n: (f.status, f.side, f.zone) for n, f in found.items() if f.status != "absent"} == truth(exam)
    assert right >= 148


def test_denied_findings_are_absent_and_silent_ones_are_missing():
    exams = [scene(World(), 23, index) for index in range(200)]
    counts = {"absent": 0, "missing": 0}
    for exam in exams:
        found = label_findings(write(exam).text)
        for name in FINDINGS:
            if exam.sign(name) is None:
                counts["missing" if name not in found else "absent"] += 1
                assert name not in found or found[name].status == "absent"
    assert min(counts.values()) > 300


@pytest.mark.parametrize("language", ["en", "es"])
@pytest.mark.parametrize("held_out", [False, True])
def test_prompts_mean_what_they_should(language, held_out):
    for name in FINDINGS:
        for side in ("left", "right") if name in SIDED else (None,):
            for sentence in prompts(name, side=side, language=language, held_out=held_out):
                found = label_findings(sentence, language=language)
                assert found[name].status == "present" and found[name].side == side, sentence
        for sentence in negative_prompts(name, language=language, held_out=held_out):
            assert label_findings(sentence, language=language)[name].status == "absent", sentence
    for sentence in normal_prompts(language=language):
        assert all(f.status == "absent" for f in label_findings(sentence, language=language).values()), sentence


def test_statements_are_joined():
    text = (
        "Small left effusion. No right effusion.\nImpression: Right effusion also seen. Possible fracture. No fracture."
    )
    found = label_findings(text)
    assert found["Pleural Effusion"] == Finding("Pleural Effusion", "present", side="bilateral", severity="mild")
    assert found["Fracture"].status == "uncertain"
    three = (
        "Consolidation in the right upper lobe. Consolidation in the right lower lobe. Right upper lobe consolidation."
    )
    assert label_findings(three)["Consolidation"] == Finding("Consolidation", "present", side="right")


def test_parts_that_state_nothing_are_not_read():
    report = (
        "FINAL REPORT\nEXAMINATION: Chest PA\nINDICATION: Cough, effusion on outside film.\n"
        "COMPARISON: Prior study with pneumothorax.\nTECHNIQUE: PA after line placement.\n"
        "FINDINGS: Heart size is normal.\nIMPRESSION: Mild edema.\nRECOMMENDATION: CT to exclude a nodule."
    )
    assert {name: f.status for name, f in label_findings(report).items()} == {
        "Cardiomegaly": "absent",
        "Edema": "present",
    }


def test_edges():
    assert label_findings("") == {} and label_findings(" \n .") == {}
    assert list(label_findings("Effusion and cardiomegaly and a fracture.")) == [
        name for name in FINDINGS if name in ("Cardiomegaly", "Pleural Effusion", "Fracture")
    ]
    assert label_findings("NO PNEUMOTHORAX.")["Pneumothorax"].status == "absent"
    assert label_findings("derrame pleural izquierdo", language="es")["Pleural Effusion"].side == "left"
    with pytest.raises(KitError, match="language 'fr'"):
        label_findings("x", language="fr")
