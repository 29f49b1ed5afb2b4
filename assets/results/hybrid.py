"""Do hybrids beat their parts, and who is heard in them? python assets/results/hybrid.py [ARM or ARM:SEED ...]

One architecture, three objectives (contrast, hidden words, entity queries), alone and together, weighed in several ways.
Under one seed all arms start from the same weights and see the same studies in the same order; only the objectives and
their weights differ. Rows go to hybrid.csv beside this file as they are finished; an arm and seed that have a row are
passed over, so that the work can be stopped, continued, and shared out over several processes by name ("all:0").

columns: AUROC (zero-shot), recall@5, pointing game and side swap, as `evaluate` gives them; entities, the AUROC of the
query decoder's own answers, and words, the share of hidden words found (beside it the same with another study's image),
where the arm trained them; each on test studies with 95 % intervals over studies. pull NAME: share of objective NAME in
the sum of the gradients' lengths at the last matrices of both encoders, after weighting, a mean over the training's log;
pull NAME, end: over its last fifth. weight NAME likewise at the end. cosine A, B: mean over the log. `core minutes` is the
processor time of pretraining on one thread, which other work on the machine changes little.
"""

import fcntl
import sys
import time
from functools import partial
from itertools import combinations
from pathlib import Path

import pandas as pd
import torch

from medvlp_kit.budget import budget
from medvlp_kit.checkpoint import write_text
from medvlp_kit.collate import collate
from medvlp_kit.downstream.classification import bootstrap_auroc
from medvlp_kit.downstream.encode import Examination, evaluating, images_at
from medvlp_kit.downstream.evaluate import examine
from medvlp_kit.downstream.intervals import bootstrap_mean
from medvlp_kit.errors import unknown
from medvlp_kit.model import ForwardPass
from medvlp_kit.objectives import WeightedSum
from medvlp_kit.objectives.balance import Balance, GradientNorm, Scheduled, Uncertainty
from medvlp_kit.objectives.contrastive import InfoNCE
from medvlp_kit.objectives.knowledge import EntityQueries
from medvlp_kit.objectives.masked_text import ALWAYS_MASK, MaskedLanguage
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.pretrain import pretrain
from medvlp_kit.recipes import Recipe

TABLE = Path(__file__).resolve().parent / "hybrid.csv"
SEEDS = (0, 1, 2)
SIZE = budget("laptop").but(image_size=32, train_studies=6_400, epochs=1)
LOUD = 100.0  # about the hidden words of a batch: what becomes of the loss when it is summed where it should be averaged
PARTS = {
    "contrast": lambda model: InfoNCE(),
    "words": lambda model: MaskedLanguage(model, which="medical", ratio=0.4, rule=ALWAYS_MASK),
    "queries": EntityQueries,
}
HALF = SIZE.steps // 2  # the auxiliary objectives first or last, with a straight line over half of the steps between
FADE_OUT = {name: ((HALF // 2, 1.0), (HALF // 2 + HALF, 0.0)) for name in ("words", "queries")}
FADE_IN = {name: ((HALF // 2, 0.0), (HALF // 2 + HALF, 1.0)) for name in ("words", "queries")}
ALL, LOUDLY = ("contrast", "words", "queries"), {"words": LOUD}
ARMS = {  # arm -> (objectives, fixed weights, balance, epochs)
    "contrast": (("contrast",), {}, Balance, 1),
    "words": (("words",), {}, Balance, 1),
    "queries": (("queries",), {}, Balance, 1),
    "contrast, twice as long": (("contrast",), {}, Balance, 2),
    "contrast + words": (("contrast", "words"), {}, Balance, 1),
    "contrast + queries": (("contrast", "queries"), {}, Balance, 1),
    "all": (ALL, {}, Balance, 1),
    "all, auxiliaries fade out": (ALL, {}, partial(Scheduled, schedule=FADE_OUT), 1),
    "all, auxiliaries fade in": (ALL, {}, partial(Scheduled, schedule=FADE_IN), 1),
    "all, uncertainty": (ALL, {}, Uncertainty, 1),
    "all, gradient norm": (ALL, {}, GradientNorm, 1),
    "words x 100": (ALL, LOUDLY, Balance, 1),
    "words x 100, uncertainty": (ALL, LOUDLY, Uncertainty, 1),
    "words x 100, gradient norm": (ALL, LOUDLY, GradientNorm, 1),
}
COLUMNS = {
    "zero-shot classification": "AUROC", "retrieval": "recall@5", "grounding": "pointing game", "side swap": "side swap",
}  # fmt: skip
TASKS = ("zero-shot", "retrieval", "grounding", "side-swap")  # of these COLUMNS are the numbers


def recipe_of(arm: str) -> Recipe:
    """The recipe of one arm: the encoders and the fusion are everyone's, whether the objectives use them or not."""
    names, weights, balance, _ = ARMS[arm]
    return Recipe(
        name="hybrid",
        title=arm,
        paper="",
        year=2026,
        idea="several objectives over one forward pass",
        objectives=names,
        objective=lambda model: WeightedSum(
            {name: PARTS[name](model) for name in names}, weights, balance=balance, watch=5 if len(names) > 1 else None
        ),
        texts=("impression",),
        text_length=40,
        findings=True,
        fusion="dual_stream",
        fusion_options={"variant": "text_to_image", "layers": 1},
        text_options={"pooling": "mean"},
        model_options={"projection_kind": "linear", "temperature": 0.07},
    )


def pulls(history: pd.DataFrame, names: tuple[str, ...]) -> dict[str, float]:
    """Shares of the gradients' lengths after weighting, final weights, and cosines, from the log of a hybrid."""
    if len(names) == 1:
        return {f"pull {names[0]}": 1.0}
    weights = pd.DataFrame({name: history.get(f"weight/{name}", 1.0) for name in names}, index=history.index)
    lengths = weights * history[[f"gradient/{name}" for name in names]].set_axis(names, axis=1)
    shares = lengths.div(lengths.sum(axis=1), axis=0)
    end = slice(-max(1, len(history) // 5), None)
    found = {}
    for name in names:
        found |= {f"pull {name}": shares[name].mean(), f"pull {name}, end": shares[name].iloc[end].mean()}
        found[f"weight {name}, end"] = weights[name].iloc[end].mean()
    for one, two in combinations(names, 2):
        found[f"cosine {one}, {two}"] = history[f"cosine/{one}, {two}"].mean()
    return found


@torch.no_grad()
def own_tasks(run, exam: Examination) -> dict[str, float]:
    """How well the auxiliary objectives do on test studies what they were trained for."""
    row, parts, image = {}, run.objective.parts, exam.encoded.image
    if "queries" in parts:
        exists, _ = parts["queries"].predict(run.model, image)
        entities = list(parts["queries"].entities)
        columns = [entities.index(name) for name in exam.collection.label_names if name in entities]
        kept = [k for k, name in enumerate(exam.collection.label_names) if name in entities]
        labels = exam.collection.labels(range(len(exam)))[:, kept]
        found = bootstrap_auroc(exists[:, columns].numpy(), labels, resamples=SIZE.resamples, seed=0).macro
        row |= {"entities": float(found.value), "entities low": float(found.low), "entities high": float(found.high)}
    if "words" in parts:
        batch = collate(
            exam.collection, range(len(exam)), tokenizer=run.tokenizer, image_size=SIZE.image_size, text_length=40,
            texts=("impression",),
        )  # fmt: skip
        forward_pass = ForwardPass(run.model, batch)
        torch.manual_seed(0)
        masked, words = parts["words"].masking.view(forward_pass), parts["words"].masking.features(forward_pass)
        other = torch.randperm(len(exam), generator=torch.Generator().manual_seed(0))
        for name, images in (("words", image), ("words, another's image", images_at(image, other))):
            logits = parts["words"].head(run.model.fuse(images, words).tokens[masked.chosen])
            right = (logits.argmax(dim=-1) == masked.original[masked.chosen]).double().numpy()
            studies = masked.chosen.nonzero()[:, 0].numpy()
            found = bootstrap_mean(right, clusters=studies, resamples=SIZE.resamples, seed=0)
            row |= {name: float(found.value), f"{name} low": float(found.low), f"{name} high": float(found.high)}
    return row


def trained(arm: str, seed: int) -> dict:
    """One row."""
    names, _, _, epochs = ARMS[arm]
    start = time.process_time()
    train = Phantoms(SIZE.train_studies, seed=0, split="train")
    size = SIZE.but(epochs=epochs)
    run = pretrain(recipe_of(arm), train, budget=size, seed=seed, precision="no", progress=False)
    minutes = (time.process_time() - start) / 60
    test = Phantoms(SIZE.test_studies, seed=0, split="test")
    exam = Examination(run.model, run.tokenizer, test, budget=size, split=None, seed=0)
    row = {"arm": arm, "seed": seed, "objectives": " + ".join(names)}
    for result in examine(exam, task=TASKS, seed=0):
        column = COLUMNS[result.task]
        row |= {column: result.value, f"{column} low": result.low, f"{column} high": result.high}
        row[f"{column} control"] = result.control.value
    with evaluating(run.model), evaluating(run.objective):
        row |= own_tasks(run, exam)
    row |= pulls(run.history, names)
    return row | {"pairs": run.steps * size.batch_size, "steps": run.steps, "core minutes": minutes}


def table() -> pd.DataFrame:
    return pd.read_csv(TABLE) if TABLE.is_file() else pd.DataFrame(columns=["arm", "seed"])


def keep(row: dict) -> None:
    """Add a row; one process at a time, lest two write at once."""
    with open(__file__, encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done, new = table(), pd.DataFrame([row]).round(4)
        frame = pd.concat([done, new]) if len(done) else new
        order = frame["arm"].map(list(ARMS).index)
        frame = frame.assign(order=order).sort_values(["order", "seed"]).drop(columns="order")
        write_text(TABLE, frame.to_csv(index=False))


def main() -> None:
    torch.set_num_threads(1)
    wanted = []
    for word in sys.argv[1:] or ARMS:
        arm, _, seed = word.partition(":")
        if arm not in ARMS:
            raise unknown("arm", arm, ARMS)
        wanted += [(int(seed), arm)] if seed else [(number, arm) for number in SEEDS]
    for seed, arm in sorted(wanted, key=lambda pair: pair[0]):  # every arm once before any arm twice
        found = table()
        if ((found["arm"] == arm) & (found["seed"] == seed)).any():
            continue
        row = trained(arm, seed)
        keep(row)
        print(pd.Series(row).to_string(), flush=True)


if __name__ == "__main__":
    main()
