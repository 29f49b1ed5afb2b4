"""How pretraining's gain shrinks with labels: python assets/results/transfer.py [START ...]

Another hospital's studies (more bedside films, milder signs, more normal studies) are learned from 1, 10 and 100 % of
2,000 labels, from four starts: the base checkpoint, an encoder pretrained on labels, random weights, and other recipes
for comparison (probes only). Nested subsets, three draws. Rows go to transfer.csv beside this file as they are
finished; those that stand there are passed over. The work can be shared out over several processes by START.

Learning rates are chosen on validation for each start, by one fit each at 10 % (the rows of draw "pilot"). Steps are the
same for all starts. The encoder pretrained on labels saw the 11,000 studies of the base checkpoint, two passes, and
their labels instead of their reports; it is kept under runs/transfer.
"""

import sys
from pathlib import Path

import pandas as pd

from medvlp_kit import recipes
from medvlp_kit.budget import budget
from medvlp_kit.checkpoint import load_tensors, load_weights, save_tensors, write_text
from medvlp_kit.downstream.encode import randomised
from medvlp_kit.downstream.fine_tune import fit_classifier
from medvlp_kit.downstream.frozen import Transfer
from medvlp_kit.downstream.label_fractions import FRACTIONS, nested_subsets
from medvlp_kit.downstream.linear_probe import fit_linear_probe
from medvlp_kit.downstream.multilabel import bootstrap_metric
from medvlp_kit.phantoms import Phantoms, World
from medvlp_kit.run_folder import load_base, load_run

HERE = Path(__file__).resolve().parent
TABLE, RUNS = HERE / "transfer.csv", HERE.parents[1] / "runs"
SIZES = budget("laptop").but(test_studies=1000)
HELD = 400  # validation studies
HOSPITAL = World(ap_fraction=0.7, severity_mix=(0.5, 0.35, 0.15), normal_fraction=0.4)
STUDIES, SEED, DRAWS = 2000, 1, 3
STEPS = {0.01: 60, 0.1: 100, 1.0: 200}
RATES = (1e-3, 3e-3)
OTHERS = ("chexzero", "gloria", "mgca")  # recipes whose run under runs/recipes is probed too, where there is one
DECAY = {"base": 0.4, "labels": 0.4, "random": 1.0}  # from random weights no layer holds anything to be kept
KEYS = ["start", "method", "fraction", "draw", "rate"]


def jobs():
    """(start, method, fraction, draw, rate); rate None: the one that the pilots chose."""
    for start in ("base", "random", "labels"):
        yield from ((start, "probe", fraction, str(d), None) for fraction in FRACTIONS for d in range(DRAWS))
    for start in OTHERS:
        yield from ((start, "probe", fraction, str(d), None) for fraction in FRACTIONS for d in range(DRAWS))
    for start in DECAY:
        yield from ((start, "fine-tune", 0.1, "pilot", rate) for rate in RATES)
    for draw in range(DRAWS):
        for start in DECAY:
            yield from ((start, "fine-tune", fraction, str(draw), None) for fraction in FRACTIONS)
        yield "base", "fine-tune, one rate", 0.1, str(draw), None


def done() -> pd.DataFrame:
    return pd.read_csv(TABLE, dtype={"draw": str}) if TABLE.is_file() else pd.DataFrame(columns=KEYS)


def chosen_rate(start: str) -> float:
    pilots = done().query("draw == 'pilot' and start == @start")
    return float(pilots.loc[pilots["validation"].idxmax(), "rate"])


class Studio:
    """The studies, the starts and their features, each made when first asked for."""

    def __init__(self):
        run = load_base()
        self.title = run.recipe.name
        studies = Phantoms(STUDIES, seed=SEED, world=HOSPITAL)
        self.data = {"base": Transfer(run.model, studies, budget=SIZES, train_studies=STUDIES)}
        self.data["base"].studies["validation"] = studies.split("validation").subset(range(HELD))
        self.pictures: dict = {}

    def of(self, start: str) -> Transfer | None:
        if start not in self.data:
            base = self.data["base"]
            if start == "random":
                model = randomised(base.model)
            elif start == "labels":
                model = randomised(base.model)
                model.image_encoder = supervised(model.image_encoder)
            else:
                folder = RUNS / "recipes" / recipes.get(start).name
                model = load_run(folder).model if (folder / "model.safetensors").is_file() else None
            self.data[start] = None if model is None else base.of(model)
        return self.data[start]

    def images(self, split: str):
        if split not in self.pictures:
            self.pictures[split] = self.data["base"].images(split)
        return self.pictures[split]


def supervised(encoder):
    """The encoder after two passes over the labels of the base checkpoint's studies."""
    place = RUNS / "transfer" / "supervised.safetensors"
    if not place.is_file():
        train = Phantoms(SIZES.train_studies, seed=0, split="train")
        held = Phantoms(HELD, seed=0, split="validation")
        rows, own = range(len(train)), range(HELD)
        fit = fit_classifier(
            encoder, train.images(list(rows), size=SIZES.image_size), train.labels(rows).numpy(),
            validation=(held.images(own, size=SIZES.image_size), held.labels(own).numpy().astype(float)),
            steps=2 * len(train) // SIZES.batch_size, batch_size=SIZES.batch_size, learning_rate=SIZES.learning_rate,
            decay=1.0, evaluations=4, progress=True, title="supervised pretraining",
        )  # fmt: skip
        place.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(place, fit.model.encoder.state_dict(), metadata={"validation": fit.validation})
    tensors, _ = load_tensors(place)
    load_weights(encoder, tensors, source=str(place))
    return encoder


def row(studio: Studio, start: str, method: str, fraction: float, draw: str, rate: float | None) -> dict | None:
    data = studio.of(start)
    if data is None:
        return None
    number = 0 if draw == "pilot" else int(draw)
    chosen = nested_subsets(STUDIES, fractions=FRACTIONS, seed=number)[fraction]
    labels, step = data.studies["train"].labels(chosen.tolist()).numpy().astype(float), 0
    tested = data.studies["test"].labels(range(len(data.studies["test"]))).numpy().astype(float)
    truth = data.studies["validation"].labels(range(HELD)).numpy().astype(float)
    if method == "probe":
        probe = fit_linear_probe(data.train.pooled[chosen], labels, validation=(data.validation.pooled, truth))
        scores, validation, rate = probe.scores(data.test.pooled), probe.chosen_from[probe.strength], probe.strength
    else:
        rate = rate or chosen_rate(start)
        fit = fit_classifier(
            data.model.image_encoder, studio.images("train")[chosen], labels, validation=(studio.images("validation"), truth),
            steps=STEPS[fraction], batch_size=SIZES.batch_size, learning_rate=rate,
            decay=1.0 if "one rate" in method else DECAY[start], evaluations=3, seed=number,
        )  # fmt: skip
        scores, validation, step = fit.scores(studio.images("test")), fit.validation, fit.step
    found = bootstrap_metric(scores, tested, metric="AUROC", resamples=SIZES.resamples).macro
    return {
        "start": start, "recipe": studio.title if start == "base" else "", "method": method, "fraction": fraction,
        "studies": len(chosen), "draw": draw, "rate": rate, "step": step, "validation": validation,
        "AUROC": float(found.value), "low": float(found.low), "high": float(found.high),
    }  # fmt: skip


def main() -> None:
    wanted, studio = sys.argv[1:], None
    for start in wanted:
        if start not in (*DECAY, *OTHERS):
            raise SystemExit(f"error: no start {start!r}: name some of {', '.join((*DECAY, *OTHERS))}")
    for start, method, fraction, draw, rate in jobs():
        known = done()
        same = known[(known["start"] == start) & (known["method"] == method) & (known["fraction"] == fraction)]
        same = same[(same["draw"] == draw) & ((same["rate"] == rate) | (draw != "pilot"))]
        if len(same) or (wanted and start not in wanted):
            continue
        studio = studio or Studio()
        made = row(studio, start, method, fraction, draw, rate)
        if made is None:
            continue
        write_text(TABLE, pd.concat([done(), pd.DataFrame([made]).round(4)]).to_csv(index=False))
        print(made, flush=True)


if __name__ == "__main__":
    main()
