"""VQA-RAD (Lau et al., Scientific Data 2018; CC0): radiology pictures with clinicians' questions and answers.

Layout as published at osf.io/89kps:  ROOT/"VQA_RAD Dataset Public.json"  and  ROOT/"VQA_RAD Image Folder"/synpic*.jpg
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

from ..errors import KitError, unknown
from ..study import Question, Report
from .files import FileCollection, ImageFile, Record, leaks_of, with_splits
from .paths import inside, require_root
from .splits import link, normalise
from .wording import counted, is_damaged, mend_text, tally

QUESTIONS = "VQA_RAD Dataset Public.json"
PICTURES = "VQA_RAD Image Folder"
SPLITTINGS = ("ours", "official")
ORGANS = {"HEAD": "Head", "CHEST": "Chest", "ABD": "Abdomen"}
KINDS = {"PRES": "presence", "POS": "zone", "COUNT": "count", "PLANE": "view"}
NEEDED = ("image_name", "question", "answer")


class VqaRad(FileCollection):
    """One study a picture; its text is the questions with their answers, as sentences; labels are the part of the body.

    splitting: "ours" keeps all questions of a picture, and all pictures of a MedPix case, in one split. "official"
    follows `phrase_type`: it puts the same pictures into train and test, so its results are too good; `notice` says so.
    In "official" a picture with questions of both kinds gives two studies.
    """

    layout = (QUESTIONS, PICTURES)

    def __init__(
        self,
        root: str | Path,
        *,
        splitting: str = "ours",
        fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
        seed: int = 0,
        channels: int = 1,
    ):
        if splitting not in SPLITTINGS:
            raise unknown("splitting", splitting, SPLITTINGS)
        root = require_root(root, "vqa-rad", *self.layout)
        rows = read_questions(root / QUESTIONS)
        dropped: Counter[str] = Counter()
        problems = []
        pictures: dict[str, list[dict]] = defaultdict(list)
        for number, row in enumerate(rows, start=1):
            where = f"{QUESTIONS}, record {number}"
            path = inside(root / PICTURES, row["image_name"], where=where)
            if not row["question"]:
                dropped["without a question"] += 1
                problems.append(f"{where}: no question")
            elif not path.is_file():
                dropped["whose picture is missing"] += 1
                problems.append(f"{where}: {path} is missing")
            else:
                pictures[row["image_name"]].append(row)
        if not pictures:
            raise KitError(f"{root / PICTURES} holds no picture named in {QUESTIONS}; unpack the pictures there")
        cases = _cases(pictures)
        records = []
        for name, group in pictures.items():
            parts = {"": group}
            if splitting == "official":
                parts = {"train": [r for r in group if not r["test"]], "test": [r for r in group if r["test"]]}
            records += [
                _record(root, name, part, patient=cases[name], split=split) for split, part in parts.items() if part
            ]
        if splitting == "ours":
            records = with_splits(records, fractions=fractions, seed=seed)
        notice = f"{counted(len(pictures), 'picture')}, {counted(sum(map(len, pictures.values())), 'question')}."
        notice += " Many pictures carry a watermark, which a model can learn by heart."
        if dropped:
            notice += f" Questions left out: {tally(dropped)}."
        if splitting == "official":
            trained, tested = ({r.images[0].path for r in records if r.split == split} for split in ("train", "test"))
            notice += f" The official split leaks: {len(trained & tested)} of {len(tested)} test pictures are also in"
            notice += f" train. {leaks_of(records)}"
        super().__init__(
            records,
            name="vqa-rad",
            root=root,
            label_names=tuple(ORGANS.values()),
            channels=channels,
            notice=notice.strip(),
            problems=problems,
        )


def read_questions(path: Path) -> list[dict]:
    """The records, with text mended, answers as strings and `closed` and `test` as bools."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise KitError(f"{path} is not readable JSON ({error}); download it again") from None
    if not isinstance(rows, list) or not rows:
        raise KitError(f"{path} holds no list of questions; download it again")
    clean = []
    for number, row in enumerate(rows, start=1):
        missing = [key for key in NEEDED if key not in row] if isinstance(row, dict) else list(NEEDED)
        if missing:
            raise KitError(f"{path}, record {number}: {', '.join(missing)} is missing; download the file again")
        # some answers are numbers, some values end in blanks
        text = {key: " ".join(mend_text(value).split()) for key, value in row.items()}
        clean.append(
            {
                "image_name": text["image_name"],
                "question": text["question"],
                "answer": text["answer"],
                "case": text.get("image_case_url", ""),
                "organ": text.get("image_organ", "").upper(),
                "kinds": text.get("question_type", "").upper().replace(",", " ").split(),
                "damaged": any(is_damaged(value) for value in row.values() if isinstance(value, str)),
                "closed": text.get("answer_type", "").upper() == "CLOSED",
                "test": text.get("phrase_type", "").lower().startswith("test"),
            }
        )
    return clean


def _cases(pictures: dict[str, list[dict]]) -> dict[str, str]:
    """Picture name -> patient: pictures whose questions name the same MedPix case belong together."""
    rows = [(name, row["case"]) for name, group in pictures.items() for row in group]
    groups = link([name for name, _ in rows], [case for _, case in rows])
    return {name: f"case-{group:04d}" for (name, _), group in zip(rows, groups, strict=True)}


def _record(root: Path, name: str, rows: list[dict], *, patient: str, split: str) -> Record:
    questions, sentences, seen = [], [], set()
    for row in rows:
        kind = next((KINDS[kind] for kind in row["kinds"] if kind in KINDS), "other")
        questions.append(Question(row["question"], row["answer"], kind=kind, closed=row["closed"]))
        sentence = question_sentence(row["question"], row["answer"])
        if normalise(sentence) not in seen:
            seen.add(normalise(sentence))
            sentences.append(sentence)
    organ = Counter(row["organ"] for row in rows).most_common(1)[0][0]
    labels = {label: float(code == organ) for code, label in ORGANS.items()} if organ in ORGANS else {}
    return Record(
        identifier=Path(name).stem + (f"-{split}" if split else ""),
        patient=patient,
        images=(ImageFile("frontal", root / PICTURES / name),),
        report=Report(" ".join(sentences)),
        labels=labels,
        questions=tuple(questions),
        modality=f"{ORGANS[organ].lower()} image" if organ in ORGANS else "image",
        split=split or None,
        damaged=any(row["damaged"] for row in rows),
    )


def question_sentence(question: str, answer: str) -> str:
    """'Is there a mass? No.'"""
    question, answer = question.rstrip(" ?."), answer.rstrip(" .")
    return f"{question}? {answer}." if answer else f"{question}?"
