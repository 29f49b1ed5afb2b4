"""Pretrain every recipe at the laptop budget and keep its results: python assets/results/recipes.py [NAME ...]

Each recipe gets the same phantoms, steps and seed, with the budget's learning rate. Rows go to recipes.csv beside this
file as they are finished; a recipe that has a row is passed over, so that the work can be stopped, continued, and
shared out over several processes by name. Runs are kept under runs/recipes. Systems that rank by fusing every pair are
examined on fewer studies: see the column. `core minutes` is the processor time of pretraining, which other work on the
machine hardly changes; it is empty where a run was interrupted and continued.
"""

import sys
import time
from pathlib import Path

import pandas as pd
import torch

from medvlp_kit import recipes
from medvlp_kit.budget import budget
from medvlp_kit.checkpoint import write_text
from medvlp_kit.downstream.evaluate import evaluate
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.pretrain import pretrain

HERE = Path(__file__).resolve().parent
TABLE = HERE / "recipes.csv"
RUNS = HERE.parents[1] / "runs" / "recipes"
SEED, FEWER = 0, 200
COLUMNS = {
    "zero-shot classification": "AUROC", "retrieval": "recall@5", "grounding": "pointing game", "side swap": "side swap",
}  # fmt: skip


def examined(name: str) -> dict:
    """One row: what the recipe is, its results with intervals and hardest controls, and what it cost."""
    recipe, sizes = recipes.get(name), budget("laptop")
    train = Phantoms(sizes.train_studies, seed=SEED, split="train")
    fresh, start = not (RUNS / name).exists(), time.process_time()
    described = {"name": "phantoms", "size": len(train), "seed": SEED}
    run = pretrain(name, train, budget=sizes, out=RUNS / name, seed=SEED, resume=True, data=described)
    minutes = (time.process_time() - start) / 60 if fresh else float("nan")
    studies = sizes.test_studies if recipe.scorer is None else FEWER
    results = evaluate(run, budget=sizes.but(test_studies=studies), show=False)
    row = {"recipe": name, "objectives": " + ".join(recipe.objectives), "fusion": recipe.fusion or "none"}
    for result in results:
        column = COLUMNS[result.task]
        row |= {column: result.value, f"{column} low": result.low, f"{column} high": result.high}
        row[f"{column} control"] = result.control.value
    row |= {"studies": studies, "steps": run.steps, "core minutes": minutes}
    row["parameters"] = sum(p.numel() for p in run.model.parameters())
    return row


def main() -> None:
    wanted = sys.argv[1:] or recipes.names()
    for name in wanted:
        recipes.get(name)  # a wrong name is said before an hour has passed
    for name in wanted:
        if name in set(table()["recipe"]):
            continue
        torch.manual_seed(SEED)
        row = pd.DataFrame([examined(name)]).round(4)
        done = pd.concat([table(), row]).sort_values("recipe")  # read again: another process may have added its own
        write_text(TABLE, done.to_csv(index=False))
        print(row.T.to_string(header=False), flush=True)


def table() -> pd.DataFrame:
    return pd.read_csv(TABLE) if TABLE.is_file() else pd.DataFrame(columns=["recipe"])


if __name__ == "__main__":
    main()
