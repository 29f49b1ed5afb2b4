"""Train the checkpoint that lessons 15 to 27 start from: python assets/checkpoints/base.py

The hybrid of assets/results/recipes.csv that serves those lessons best, at the laptop budget, on phantoms alone. A run
that `python assets/results/recipes.py` left under runs/recipes is the same run, and is not trained a second time. Weights,
tokenizer and the evaluation go to assets/checkpoints/base.
"""

import shutil
from pathlib import Path

from medvlp_kit.budget import budget
from medvlp_kit.downstream.evaluate import evaluate
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.pretrain import pretrain
from medvlp_kit.run_folder import Run

RECIPE, SEED = "kad", 0
HERE = Path(__file__).resolve().parent
BASE, RUNS = HERE / "base", HERE.parents[1] / "runs" / "recipes"


def trained(recipe: str) -> Run:
    """The recipe's run at the laptop budget on phantoms, trained here unless it was before."""
    sizes = budget("laptop")
    train = Phantoms(sizes.train_studies, seed=SEED, split="train")
    described = {"name": "phantoms", "size": len(train), "seed": SEED}
    return pretrain(recipe, train, budget=sizes, out=RUNS / recipe, seed=SEED, resume=True, data=described)


def main() -> None:
    run = trained(RECIPE)
    evaluate(run, out=BASE)
    for name in ("run.json", "tokenizer.json", "history.csv", "model.safetensors"):
        shutil.copyfile(run.folder / name, BASE / name)


if __name__ == "__main__":
    main()
