"""Score every kind of map, with controls and sanity checks, after three trainings: python assets/results/maps.py [SEED ...]

Lesson 19 computes the same on fewer cases and reads the rest from maps.csv beside this file. Training 0 is the base
checkpoint, with three draws of every control. Trainings 1 and 2 are the same recipe and steps from other weights on other
phantoms (kept under runs/trainings), with one draw of every control and without the tests of weights. All are asked about
the same phantoms of the test split. A part that has its rows is passed over, so the work can be stopped, continued, and
shared out over processes by seed.

columns: training, part (scores, differences, seeds, prior, weights, inputs), map, condition (a control, or what was
destroyed), score, value with its 95 % interval (low, high; for seeds the seed is in `low`), cases
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from medvlp_kit.attribution import (
    KINDS,
    SCORES,
    Gallery,
    baseline_images,
    compare_maps,
    input_randomisation,
    phrase_prior,
    query_attention,
    score_cases,
    seeded_mean,
    weight_randomisation,
)
from medvlp_kit.checkpoint import write_text
from medvlp_kit.downstream.encode import evaluating
from medvlp_kit.downstream.grounding import Cases
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.pretrain import pretrain
from medvlp_kit.run_folder import Run, load_base

TABLE = Path(__file__).resolve().with_suffix(".csv")
RUNS = TABLE.parents[2] / "runs" / "trainings"
COLUMNS = ["training", "part", "map", "condition", "score", "value", "low", "high", "cases"]
STUDIES, FEWER, SEEDS = 120, 30, (0, 1, 2)  # studies for the scores, for the sanity checks; seeds of trainings and controls
HABIT = 400  # training studies from which the phrase prior knows where findings usually lie
POINTING = list(SCORES).index("pointing game")
MOVING = ("Lung Lesion", "Consolidation", "Atelectasis", "Fracture")  # lie in any zone
STAGES = {  # from the output to the input; the head of a map by attention is the decoder
    "head": ["image_projection"],
    "block 3": ["image_encoder.body.layer3.0"],
    "block 2": ["image_encoder.body.layer2.0"],
    "block 1": ["image_encoder.body.layer1.0"],
    "stem": ["image_encoder.body.bn1", "image_encoder.body.conv1"],
}


def attention(model, images, asked):
    """The decoder that the checkpoint was trained with; it hangs on the model, so that controls redraw it as well."""
    return query_attention(model, model.queries, images, asked.tokens)


class SharedOcclusion:
    """`attribution.occlusion` of a model that ranks by cosine, with each covered picture encoded once for all phrases.

    falls (P, D): embedding of the whole picture minus that of the picture with square p covered. The fall of the score
    for a direction d is then falls @ d, and a pixel gets the mean over its squares. Every phrase shares them.
    """

    def __init__(self, size: int):
        self.size, self.falls = size, {}
        self.squares = dict(kernel_size=size // 4, stride=size // 8)
        pixels = torch.eye(size * size).view(-1, 1, size, size)
        self.covered = F.unfold(pixels, **self.squares).sum(1).T.reshape(-1, 1, size, size).bool()  # (P, 1, H, W)

    def __call__(self, model, images, asked):
        weights = tuple(float(value.double().abs().sum()) for value in model.state_dict().values())
        for image in images:
            key = (weights, image.numpy().tobytes())
            if key not in self.falls:
                every = torch.cat([image[None], torch.where(self.covered, baseline_images(image[None]), image[None])])
                with evaluating(model):
                    embedded = model.embed_image(model.encode_image(every)).clone()
                self.falls[key] = embedded[:1] - embedded[1:]
        falls = torch.stack([self.falls[weights, image.numpy().tobytes()] for image in images])  # (B, P, D)
        scores = torch.einsum("bpd,bd->bp", falls, asked.text - asked.against)
        alike = scores[:, None].expand(-1, self.squares["kernel_size"] ** 2, -1)  # (B, pixels of a square, P)
        spread, times = (F.fold(x, self.size, **self.squares) for x in (alike, torch.ones_like(alike)))  # (B, 1, H, W)
        return (spread / times)[:, 0]


def destroyed(model) -> dict[str, list[str]]:
    """Module names of each stage: whatever below them has weights."""
    heads = {"head": [*STAGES["head"], "queries"]}
    return {
        stage: [n for root in roots for n, _ in model.named_modules() if n == root or n.startswith(root + ".")]
        for stage, roots in (STAGES | heads).items()
    }


def scores(gallery, name, kind, seeds) -> list[tuple]:
    found = compare_maps(gallery, {name: kind}, seeds=seeds)
    rows = []
    for part, frame in (("scores", found.table), ("differences", found.differences)):
        for (_, condition), row in frame.iterrows():
            rows += [(part, name, condition, s, row[s], row[f"{s} low"], row[f"{s} high"], row["cases"]) for s in SCORES]
    for (_, condition, seed), row in found.per_seed.iterrows():
        rows += [("seeds", name, condition, score, row[score], seed, None, None) for score in SCORES if seed != "-"]
    return rows + behind_prior(gallery, name, found.values[name, "model"][:, :, POINTING])


def behind_prior(gallery, name, pointing) -> list[tuple]:
    """Pointing game of a map (K, 1) minus that of the phrase prior, which sees no picture."""
    cases = gallery.cases
    learned = Cases(Phantoms(HABIT, seed=0, split="train"), size=gallery.size)
    usual = phrase_prior(learned, gallery.questions, size=gallery.size)
    apart = pointing - score_cases(usual, cases.boxes)[:, [POINTING]]
    moving = np.isin(cases.labels, MOVING)[:, None]
    rows = []
    for condition, values in (("phrase prior", apart), ("phrase prior, moving", np.where(moving, apart, np.nan))):
        found = seeded_mean(values, clusters=cases.studies, resamples=gallery.budget.resamples, seed=gallery.seed)
        count = int((~np.isnan(values)).sum())
        rows.append(("prior", name, condition, "pointing game", float(found.value), float(found.low), float(found.high), count))
    return rows


def inputs(gallery, name, kind, seeds) -> list[tuple]:
    return _correlations("inputs", name, input_randomisation(gallery, kind, seeds=seeds))


def weights(gallery, name, kind, seeds) -> list[tuple]:
    stages = destroyed(gallery.model)
    return _correlations("weights", name, weight_randomisation(gallery, kind, stages=stages, seeds=seeds))


def _correlations(part: str, name: str, frame: pd.DataFrame) -> list[tuple]:
    rows = []
    for stage, row in frame.iterrows():
        rows.append((part, name, stage, "rank correlation", row.iloc[0], row.iloc[1], row.iloc[2], row["compared"]))
        rows.append((part, name, stage, "of |map|", row.iloc[3], row.iloc[4], row.iloc[5], row["compared"]))
    return rows


def trained(seed: int) -> Run:
    """The base checkpoint, or for another seed than 0 its recipe, sizes and steps from other weights on other phantoms."""
    base = load_base()
    if not seed:
        return base
    name, train = base.recipe.name, Phantoms(base.budget.train_studies, seed=seed, split="train")
    described = {"name": "phantoms", "size": len(train), "seed": seed}
    return pretrain(name, train, budget=base.budget, out=RUNS / f"{name}-{seed}", seed=seed, resume=True, data=described)


def table() -> pd.DataFrame:
    return pd.read_csv(TABLE) if TABLE.is_file() else pd.DataFrame(columns=COLUMNS)


def score_training(training: int) -> None:
    torch.manual_seed(0)
    run = trained(training)
    run.model.queries = run.objective.parts["queries"]
    test = Phantoms(run.budget.test_studies, seed=0, split="test")
    large, small = (Gallery(run.model, run.tokenizer, test, budget=run.budget, studies=n) for n in (STUDIES, FEWER))
    print(f"training {training}", large.name, small.name, sep="\n", flush=True)
    kinds = {"similarity": KINDS["similarity"], "attention": attention, **KINDS, "occlusion": SharedOcclusion(small.size)}
    own = small.images[small.which[:2]], small.asked().rows(torch.arange(2))
    torch.testing.assert_close(kinds["occlusion"](run.model, *own), KINDS["occlusion"](run.model, *own), atol=1e-5, rtol=1e-3)
    parts = [("scores", scores, large), ("inputs", inputs, small)]
    parts += [] if training else [("weights", weights, small)]
    for name, kind in kinds.items():
        for part, work, gallery in parts:
            done = table()
            if ((done["training"] == training) & (done["part"] == part) & (done["map"] == name)).any():
                continue
            found = work(gallery, name, kind, SEEDS[:1] if training else SEEDS)
            new = pd.DataFrame([(training, *row) for row in found], columns=COLUMNS)
            done = table()  # read again: another process may have added its own
            write_text(TABLE, pd.concat([done, new] if len(done) else [new]).to_csv(index=False, float_format="%.4f"))
            print(name, part, new[new["part"] == part].iloc[:4].to_string(header=False), sep="\n", flush=True)


def main() -> None:
    for seed in map(int, sys.argv[1:] or SEEDS):
        score_training(seed)


if __name__ == "__main__":
    main()
