"""Do the words of models trained from scratch find regions? python assets/results/local.py [RECIPE ...]

Takes the runs that `python assets/results/recipes.py` left under runs/recipes, trains nothing, and scores the map of each
word that names a finding, in images that show the finding. Rows go to local.csv beside this file, one for each recipe; a
recipe that has its row is passed over. Lesson 09 reads the table.

columns: recipe; cases; words, swapped, difference: pointing game of the words' maps, of another case's words on the same
images, and of their difference, with 95 % intervals that resample studies; alike: correlation of a word's map in its own
image with the same word's map in another image; centre: a peak at the centre. The map is <region, word>, projected by the
heads of the local objective, or by the global ones where a recipe has no others.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from medvlp_kit.checkpoint import write_text
from medvlp_kit.downstream.encode import encode_collection, evaluating
from medvlp_kit.downstream.grounding import Cases, box_mask, centre_prior, pointing_game
from medvlp_kit.downstream.intervals import bootstrap_mean
from medvlp_kit.encoders.pooling import aggregate_words
from medvlp_kit.errors import KitError
from medvlp_kit.objectives.pieces import MarkedPieces, continues_word, real_words
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.run_folder import load_run

TABLE = Path(__file__).resolve().with_suffix(".csv")
RUNS = Path(__file__).resolve().parents[2] / "runs" / "recipes"
RECIPES = ("chexzero", "gloria", "mgca", "kad")
STUDIES, SEED = 300, 0
NAMES = {  # how these phantoms' reports name each finding
    "Enlarged Cardiomediastinum": ("mediasti",), "Cardiomegaly": ("cardiomegaly", "cardiac", "heart"),
    "Lung Lesion": ("nodul", "lesion", "mass"), "Edema": ("edema",), "Consolidation": ("consolid", "airspace"),
    "Atelectasis": ("atelecta", "volume"), "Pneumothorax": ("pneumothora", "ptx"),
    "Pleural Effusion": ("effusion", "fluid"), "Fracture": ("fractur", "fx"), "Support Devices": ("device",),
}  # fmt: skip


def read(run, collection):
    """Regions (S, N, D), words (S, W, D), the words as strings (a list for each report), and the regions' grid."""
    encoded = encode_collection(run.model, run.tokenizer, collection, budget=run.budget)
    tokens = run.tokenizer.encode(list(encoded.sentences), length=run.budget.text_length)
    continues = MarkedPieces(len(run.tokenizer), continues_word)
    continues.read(run.tokenizer)
    inside = real_words(tokens.mask)  # (S, T)
    number = ((inside & ~continues(tokens.ids)).long().cumsum(dim=1) - 1).masked_fill(~inside, -1)
    with evaluating(run.model):
        vectors = (run.model.token_projection or run.model.text_projection)(encoded.text.tokens)
        words, _ = aggregate_words(vectors, number, inside, how="sum")
        regions = run.model.project_patches(encoded.image)
    piece_of = {index: piece for piece, index in run.tokenizer.vocabulary.items()}
    said = []
    for ids, places in zip(tokens.ids.tolist(), number.tolist()):
        said.append([""] * (max(places) + 1))
        for index, place in zip(ids, places):
            if place >= 0:
                said[-1][place] += piece_of[index].removeprefix("##")
    return regions, words, said, encoded.image.grid


def row_of(recipe: str) -> dict:
    if not (RUNS / recipe / "model.safetensors").is_file():
        raise KitError(f"no finished run of {recipe} under {RUNS}: train it with `python assets/results/recipes.py {recipe}`")
    run, collection = load_run(RUNS / recipe), Phantoms(STUDIES, seed=SEED, split="test")
    regions, words, said, grid = read(run, collection)
    cases, size = Cases(collection, size=run.budget.image_size), run.budget.image_size
    where, vectors, masks = [], [], []
    for study, label, boxes in zip(cases.studies.tolist(), cases.labels, cases.boxes):
        places = [place for place, word in enumerate(said[study]) if word.startswith(NAMES[label])]
        if places:
            where.append(study)
            vectors.append(words[study, places].mean(dim=0))
            masks.append(box_mask(boxes, height=size, width=size))
    where, vectors, masks = np.array(where), torch.stack(vectors), torch.stack(masks)  # (K,), (K, D), (K, H, W)
    other = np.random.default_rng(SEED).permutation(len(where))

    def maps(studies, spoken):
        return torch.einsum("knd,kd->kn", regions[studies], spoken)  # (K, N)

    def hits(found):
        return pointing_game(F.interpolate(found.view(-1, 1, *grid), size=size, mode="bilinear")[:, 0], masks).numpy()

    own, swapped, elsewhere = maps(where, vectors), maps(where, vectors[other]), maps(where[other], vectors)
    scores = {"words": hits(own), "swapped": hits(swapped)}
    scores["difference"] = scores["words"] - scores["swapped"]
    row = {"recipe": recipe, "cases": len(where), "of": len(cases), "steps": run.steps}
    for name, values in scores.items():
        found = bootstrap_mean(values, clusters=where, resamples=1000, seed=SEED)
        row |= {name: float(found.value), f"{name} low": float(found.low), f"{name} high": float(found.high)}
    centred = [m - m.mean(dim=1, keepdim=True) for m in (own, elsewhere)]
    row["alike"] = F.cosine_similarity(*centred, dim=1).mean().item()
    row["centre"] = pointing_game(centre_prior(size).expand(len(where), -1, -1), masks).mean().item()
    return row


def main() -> None:
    for recipe in sys.argv[1:] or RECIPES:
        done = pd.read_csv(TABLE) if TABLE.is_file() else pd.DataFrame(columns=["recipe"])
        if recipe in set(done["recipe"]):
            continue
        new = pd.DataFrame([row_of(recipe)]).round(4)
        write_text(TABLE, (pd.concat([done, new]) if len(done) else new).to_csv(index=False))
        print(new.T.to_string(header=False), flush=True)


if __name__ == "__main__":
    main()
