"""Train one small model an arm of lesson 03, under several seeds: python assets/results/augmentation.py [ARM ...]

Arms differ in the augmentation alone: under one seed all start from the same weights and see the same studies in the
same order. Rows go to augmentation.csv beside this file as they are finished; an arm and seed that have a row are
passed over, so that the work can be stopped and continued. `core minutes` is processor time on one thread, which other
work on the machine changes little. The models are as small as the question allows: 32 pixels and 6,400 pairs.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from medvlp_kit import recipes
from medvlp_kit.augment import BlindFlip, CoupledFlip, Intensity, SidelessFlip
from medvlp_kit.augment.collection import augmented
from medvlp_kit.budget import budget
from medvlp_kit.checkpoint import write_text
from medvlp_kit.downstream.classification import zero_shot
from medvlp_kit.downstream.encode import Examination
from medvlp_kit.downstream.probes import side_swap
from medvlp_kit.errors import unknown
from medvlp_kit.objectives.mixup import FeatureMixup
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.pretrain import pretrain

TABLE = Path(__file__).resolve().parent / "augmentation.csv"
SEEDS = (0, 1, 2)
SIZE = budget("laptop").but(image_size=32, train_studies=6_400, epochs=1)
PLAIN = recipes.get("chexzero")
MIXED = replace(PLAIN, name="chexzero with feature mixup", objective=lambda model: FeatureMixup())
ARMS = {  # arm -> (recipe, augmentation)
    "blind flip": (PLAIN, BlindFlip()),
    "no flip": (PLAIN, None),
    "coupled flip": (PLAIN, CoupledFlip()),
    "sideless flip": (PLAIN, SidelessFlip()),
    "intensity and feature mixup": (MIXED, Intensity()),
}


def trained(arm: str, seed: int) -> dict:
    """One row: AUROC and side swap on test films, and side swap on the same films mirrored, with truth mirrored too."""
    recipe, policy = ARMS[arm]
    start = time.process_time()
    train = Phantoms(SIZE.train_studies, seed=0, split="train")
    run = pretrain(recipe, train, budget=SIZE, seed=seed, augment=policy, precision="no", progress=False)
    test = Phantoms(SIZE.test_studies, seed=0, split="test")
    mirrored = augmented(test, range(len(test)), CoupledFlip(1.0), size=SIZE.image_size, views=("frontal",), seed=0)
    row = {"arm": arm, "seed": seed}
    for suffix, collection in (("", test), (", mirrored films", mirrored)):
        exam = Examination(run.model, run.tokenizer, collection, budget=SIZE, split=None, seed=seed)
        for name, task in (("AUROC", zero_shot), ("side swap", side_swap)):
            result = task(run.model, run.tokenizer, collection, budget=SIZE, seed=seed, examination=exam)
            column = f"{name}{suffix}"
            row |= {column: result.value, f"{column} low": result.low, f"{column} high": result.high}
    minutes = (time.process_time() - start) / 60
    return row | {"pairs": run.steps * run.budget.batch_size, "steps": run.steps, "core minutes": minutes}


def main() -> None:
    torch.set_num_threads(1)
    wanted = sys.argv[1:] or list(ARMS)
    for arm in wanted:
        if arm not in ARMS:
            raise unknown("arm", arm, ARMS)
    for seed in SEEDS:  # every arm once before any arm twice
        for arm in wanted:
            if (arm, seed) in set(zip(table()["arm"], table()["seed"])):
                continue
            row = pd.DataFrame([trained(arm, seed)]).round(4)
            done = pd.concat([table(), row])
            order = done["arm"].map(list(ARMS).index)
            done = done.assign(order=order).sort_values(["order", "seed"]).drop(columns="order")
            write_text(TABLE, done.to_csv(index=False))
            print(row.T.to_string(header=False), flush=True)


def table() -> pd.DataFrame:
    return pd.read_csv(TABLE) if TABLE.is_file() else pd.DataFrame({"arm": [], "seed": []})


if __name__ == "__main__":
    main()
