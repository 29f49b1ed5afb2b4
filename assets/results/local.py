"""When should words look for regions? Trainings from scratch: python assets/results/local.py [ARM:SEED ...]

GLoRIA's recipe on the impressions of phantoms, with its two losses combined in five ways; everything else is equal.
Rows go to local.csv beside this file as they are finished, and an arm and seed that has its row is passed over: the work
can be stopped, continued, and shared out over several processes by name ("together:0"). Lesson 09 reads the table.

columns: arm, seed; words: the map of each word that names a finding, through the heads its loss trained (the global heads
where there are no others), in images that show the finding; phrases: contribution maps through the global heads, as
`grounding` scores them. Each beside the same map of another case's words or phrase; intervals resample studies.
"""

import fcntl
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from medvlp_kit import recipes
from medvlp_kit.budget import budget
from medvlp_kit.checkpoint import write_text
from medvlp_kit.downstream.encode import encode_collection, evaluating, randomised
from medvlp_kit.downstream.evaluate import evaluate
from medvlp_kit.downstream.grounding import Cases, centre_prior, score_maps
from medvlp_kit.downstream.intervals import bootstrap_mean
from medvlp_kit.encoders.pooling import aggregate_words
from medvlp_kit.objectives import WeightedSum
from medvlp_kit.objectives.balance import Scheduled
from medvlp_kit.objectives.contrastive import InfoNCE
from medvlp_kit.objectives.local import WordRegion
from medvlp_kit.objectives.pieces import MarkedPieces, continues_word, real_words
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.pretrain import pretrain

TABLE = Path(__file__).resolve().with_suffix(".csv")
SEEDS = (0, 1, 2)
SIZE = budget("laptop").but(image_size=48, train_studies=6_400, test_studies=400, text_length=40, epochs=3)
HALF = SIZE.steps // 2
# The words by which these phantoms' impressions name each finding.
NAMES = {
    "Enlarged Cardiomediastinum": ("mediasti",), "Cardiomegaly": ("cardiomegaly", "cardiac", "heart"),
    "Lung Lesion": ("nodul", "lesion", "mass"), "Edema": ("edema",), "Consolidation": ("consolid", "airspace"),
    "Atelectasis": ("atelecta", "volume"), "Pneumothorax": ("pneumothora", "ptx"),
    "Pleural Effusion": ("effusion", "fluid"), "Fracture": ("fractur", "fx"), "Support Devices": ("device",),
}  # fmt: skip
COLUMNS = {"zero-shot classification": "AUROC", "retrieval": "recall@5", "grounding": "phrases: pointing game"}
LATER = {"local": ((HALF, 0.0), (HALF + SIZE.steps // 10, 1.0))}  # begins at half time, at full weight a tenth later


def losses(model, *, whole=True, words=True, balance=None, **options):
    """GLoRIA's two objectives, or one of them."""
    parts = {"global": InfoNCE()} if whole else {}
    if words:
        parts["local"] = WordRegion(vocabulary_size=model.text_encoder.vocabulary_size, **options)
    return WeightedSum(parts) if balance is None else WeightedSum(parts, balance=balance)


ARMS = {
    "global alone": dict(words=False),
    "words alone": dict(whole=False),
    "together": {},
    "together, paper's form": dict(words_first=False),
    "words from half time": dict(balance=partial(Scheduled, schedule=LATER)),
}


def recipe_of(arm: str) -> recipes.Recipe:
    gloria = recipes.get("gloria")
    options = gloria.model_options | {"local_projection": ARMS[arm].get("words", True)}
    return replace(
        gloria, name=arm, texts=("impression",), objective=partial(losses, **ARMS[arm]), model_options=options
    )


def words_of(model, tokenizer, encoded, tokens):
    """Projected words (B, W, D) and the words as strings, a list for each text."""
    continues = MarkedPieces(len(tokenizer), continues_word)
    continues.read(tokenizer)
    mask = real_words(tokens.mask)  # (B, T)
    starts = mask & ~continues(tokens.ids)
    with evaluating(model):
        project = model.token_projection or model.text_projection
        words, _ = aggregate_words(project(encoded.text.tokens), starts.long().cumsum(1) - 1, mask, how="sum")
    piece = {number: name for name, number in tokenizer.vocabulary.items()}
    strings: list[list[str]] = []
    for ids, real in zip(tokens.ids.tolist(), mask.tolist()):
        strings.append([])
        for name in (piece[number] for number, kept in zip(ids, real) if kept):
            if name.startswith("##") and strings[-1]:
                strings[-1][-1] += name[2:]
            else:
                strings[-1].append(name)
    return words, strings


def word_scores(model, tokenizer, collection, *, seed: int) -> dict[str, np.ndarray]:
    """Scores (K, 3) of the maps of finding words: own, of another case's words, and of a centre prior; and K studies."""
    encoded = encode_collection(model, tokenizer, collection, budget=SIZE, text="impression")
    tokens = tokenizer.encode(list(encoded.sentences), length=SIZE.text_length)
    words, strings = words_of(model, tokenizer, encoded, tokens)
    with evaluating(model):
        patches = model.project_patches(encoded.image)  # (S, N, D)
    cases = Cases(collection, size=SIZE.image_size)
    named = torch.zeros(len(cases), words.shape[1], dtype=torch.bool)  # (K, W)
    for case, (study, label) in enumerate(zip(cases.studies, cases.labels)):
        for place, word in enumerate(strings[study]):
            named[case, place] = word.startswith(NAMES[label])
    kept = named.any(dim=1).nonzero()[:, 0].numpy()
    for name in ("studies", "labels", "boxes", "sides"):
        values = getattr(cases, name)
        setattr(cases, name, values[kept] if isinstance(values, np.ndarray) else [values[k] for k in kept])
    spoken = torch.stack([words[s][m].mean(dim=0) for s, m in zip(cases.studies, named[kept])])  # (K, D)
    shuffled = spoken[torch.from_numpy(np.random.default_rng(seed).permutation(len(kept)))]

    def maps(vectors):
        def of(rows):
            scores = torch.einsum("knd,kd->kn", patches[cases.studies[rows]], vectors[rows])
            grid = scores.view(len(rows), 1, *encoded.image.grid)
            return F.interpolate(grid, size=(SIZE.image_size,) * 2, mode="bilinear", align_corners=False)[:, 0]

        return of

    centre = centre_prior(SIZE.image_size)
    return {
        "words": score_maps(maps(spoken), cases),
        "words, shuffled": score_maps(maps(shuffled), cases),
        "centre": score_maps(lambda rows: centre.expand(len(rows), -1, -1), cases),
        "studies": cases.studies,
    }


def row_of(arm: str, seed: int) -> dict:
    torch.manual_seed(seed)
    start = time.process_time()
    run = pretrain(recipe_of(arm), Phantoms(SIZE.train_studies, seed=seed, split="train"), budget=SIZE, seed=seed)
    row = {"arm": arm, "seed": seed, "steps": run.steps, "core minutes": (time.process_time() - start) / 60}
    test = Phantoms(SIZE.test_studies, seed=seed, split="test")
    scores = word_scores(run.model.eval(), run.tokenizer, test, seed=seed)
    for name in ("words", "words, shuffled", "centre"):
        for column, metric in ((0, "pointing game"), (1, "CNR")):
            found = bootstrap_mean(scores[name][:, column], clusters=scores["studies"], resamples=1000, seed=seed)
            row |= {f"{name}: {metric}": float(found.value), f"{name}: {metric} low": float(found.low)}
            row |= {f"{name}: {metric} high": float(found.high)}
    untrained = word_scores(randomised(run.model, seed=seed), run.tokenizer, test, seed=seed)["words"]
    row["words, random weights: pointing game"] = float(np.nanmean(untrained[:, 0]))
    row["cases"] = len(scores["studies"])
    for result in evaluate(run, budget=SIZE, show=False):
        if result.task in COLUMNS:
            name = COLUMNS[result.task]
            row |= {name: result.value, f"{name} low": result.low, f"{name} high": result.high}
            row[f"{name} control"] = result.control.value
    return row


def table() -> pd.DataFrame:
    return pd.read_csv(TABLE) if TABLE.is_file() else pd.DataFrame(columns=["arm", "seed"])


def keep(row: dict) -> None:
    """Add a row; one process at a time, lest two write at once."""
    with open(__file__, encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = table()
        new = pd.DataFrame([row]).round(4)
        frame = pd.concat([done, new]) if len(done) else new
        write_text(TABLE, frame.sort_values(["arm", "seed"]).to_csv(index=False))


def main() -> None:
    wanted = [name.rsplit(":", 1) for name in sys.argv[1:]] or [(arm, seed) for arm in ARMS for seed in SEEDS]
    for arm, seed in wanted:
        found = table()
        if ((found["arm"] == arm) & (found["seed"] == int(seed))).any():
            continue
        row = row_of(arm, int(seed))
        keep(row)
        print(pd.Series(row).to_string(), flush=True)


if __name__ == "__main__":
    main()
