"""Pretrain every recipe at the laptop budget and keep its results: python assets/results/recipes.py [NAME ...]

    python assets/results/recipes.py --readme      # renew the table in README.md

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
README, MARKS = HERE.parents[1] / "README.md", ("<!-- recipes.csv -->", "<!-- end -->")
TABLE = HERE / "recipes.csv"
RUNS = HERE.parents[1] / "runs" / "recipes"
SEED, FEWER = 0, 200
COLUMNS = {
    "zero-shot classification": "AUROC", "retrieval": "recall@5", "grounding": "pointing game", "side swap": "side swap",
}  # fmt: skip
TASKS = ("zero-shot", "retrieval", "grounding", "side-swap")  # of these COLUMNS are the numbers


def examined(name: str) -> dict:
    """One row: what the recipe is, its results with intervals and hardest controls, and what it cost."""
    recipe, sizes = recipes.get(name), budget("laptop")
    train = Phantoms(sizes.train_studies, seed=SEED, split="train")
    fresh, start = not (RUNS / name).exists(), time.process_time()
    described = {"name": "phantoms", "size": len(train), "seed": SEED}
    run = pretrain(name, train, budget=sizes, out=RUNS / name, seed=SEED, resume=True, data=described)
    minutes = (time.process_time() - start) / 60 if fresh else float("nan")
    studies = sizes.test_studies if recipe.scorer is None else FEWER
    results = evaluate(run, task=TASKS, budget=sizes.but(test_studies=studies), show=False)
    row = {"recipe": name, "objectives": " + ".join(recipe.objectives), "fusion": recipe.fusion or "none"}
    for result in results:
        column = COLUMNS[result.task]
        row |= {column: result.value, f"{column} low": result.low, f"{column} high": result.high}
        row[f"{column} control"] = result.control.value
    row |= {"studies": studies, "steps": run.steps, "core minutes": minutes}
    row["parameters"] = sum(p.numel() for p in run.model.parameters())
    return row


def markdown() -> str:
    """The results as README.md shows them, best zero-shot AUROC first; "(c)" is the control's value."""
    names = ("recipe", "objectives", "fusion", "AUROC (95 %)", "recall@5", "pointing game (c)", "side swap")
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for row in table().sort_values("AUROC", ascending=False).to_dict("records"):
        cells = [
            recipes.get(row["recipe"]).title, row["objectives"], row["fusion"].replace("_", " "),
            f"{row['AUROC']:.2f} ({row['AUROC low']:.2f}–{row['AUROC high']:.2f})", f"{row['recall@5']:.2f}",
            f"{row['pointing game']:.2f} ({row['pointing game control']:.2f})", f"{row['side swap']:.2f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    missing = [recipes.get(name).title for name in recipes.names() if name not in set(table()["recipe"])]
    if missing:
        lines += ["", f"Not run to the end yet: {', '.join(missing)}."]
    return "\n".join(lines)


def renew_readme() -> None:
    text = README.read_text()
    before, rest = text.split(MARKS[0])
    after = rest.split(MARKS[1], 1)[1]
    write_text(README, f"{before}{MARKS[0]}\n\n{markdown()}\n\n{MARKS[1]}{after}")


def main() -> None:
    if sys.argv[1:] == ["--readme"]:
        return renew_readme()
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
