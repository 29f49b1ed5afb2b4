"""A run on disk: `run.json`, `tokenizer.json`, `history.csv`, `model.safetensors`, and `training.safetensors` until done.

`load_run(folder)` brings model, tokenizer and history back; nothing else is needed to evaluate a run.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import __version__
from .budget import Budget
from .checkpoint import PICKLES, load_tensors, load_weights, write_text
from .errors import KitError

if TYPE_CHECKING:
    import pandas as pd

    from .model import VisionLanguageModel
    from .objectives import Objective
    from .recipes import Recipe
    from .text import ReportTokenizer

DESCRIPTION, TOKENIZER, HISTORY = "run.json", "tokenizer.json", "history.csv"
WEIGHTS, TRAINING = "model.safetensors", "training.safetensors"


@dataclass(frozen=True)
class Run:
    """A pretraining run: what was trained, on what, and how it went. `folder` is None for a run kept in memory only."""

    model: VisionLanguageModel
    objective: Objective
    tokenizer: ReportTokenizer
    recipe: Recipe
    budget: Budget
    history: pd.DataFrame
    data: dict[str, Any]
    seed: int
    steps: int
    folder: Path | None = None


def describe(recipe: Recipe, budget: Budget, *, seed: int, data: dict, vocabulary_size: int, channels: int) -> dict:
    """What must agree between a run and its resumption."""
    return {
        "kit": __version__,
        "recipe": recipe.name,
        "budget": asdict(budget),
        "seed": seed,
        "data": data,
        "vocabulary_size": vocabulary_size,
        "channels": channels,
    }


def write_description(folder: Path, description: dict, *, finished: bool, steps: int) -> None:
    write_text(folder / DESCRIPTION, json.dumps(description | {"finished": finished, "steps": steps}, indent=2) + "\n")


def read_description(folder: Path | str) -> dict[str, Any]:
    """The `run.json` of a folder, checked."""
    folder = Path(folder)
    if folder.suffix.lower() in PICKLES:
        raise KitError(f"{folder} looks like a pickle, which can run code when opened: give the folder of a run instead")
    if not (folder / DESCRIPTION).is_file():
        raise KitError(f"{folder} holds no run (no {DESCRIPTION}): give the folder that `medvlp pretrain --out` wrote")
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        Budget(**description["budget"])
        return description
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise KitError(f"{folder / DESCRIPTION} is damaged ({error!r}): restore it or train anew") from None


def load_run(folder: Path | str, *, recipe: str | None = None, device: str | torch.device = "cpu") -> Run:
    """The run in `folder`, its model in evaluation mode. An unfinished run gives its last checkpoint.

    recipe: the recipe the caller expects; another one in the folder is an error.
    """
    import pandas as pd

    from . import recipes
    from .text import ReportTokenizer

    folder = Path(folder)
    description = read_description(folder)
    if recipe is not None and description["recipe"] != recipe:
        raise KitError(f"{folder} was trained with recipe {description['recipe']!r}, not {recipe!r}: give that one or none")
    source = folder / WEIGHTS if (folder / WEIGHTS).is_file() else folder / TRAINING
    if not source.is_file():
        raise KitError(f"{folder} has no checkpoint yet: finish it with `medvlp pretrain ... --out {folder} --resume`")
    tensors, metadata = load_tensors(source)
    budget = Budget(**description["budget"])
    built = recipes.build(
        description["recipe"],
        budget=budget,
        vocabulary_size=description["vocabulary_size"],
        channels=description["channels"],
    )
    for prefix, module in (("model.", built.model), ("objective.", built.objective)):
        own = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        load_weights(module, own, source=str(source))
    history = folder / HISTORY
    return Run(
        model=built.model.to(device).eval(),
        objective=built.objective.to(device).eval(),
        tokenizer=ReportTokenizer.load(folder / TOKENIZER),
        recipe=built.recipe,
        budget=budget,
        history=pd.read_csv(history) if history.is_file() else pd.DataFrame(),
        data=description["data"],
        seed=description["seed"],
        steps=metadata.get("step", description["steps"]),
        folder=folder,
    )


def load_base(*, device: str | torch.device = "cpu") -> Run:
    """The pretrained run that ships with the kit, from which the lessons on downstream tasks start.

    A hybrid recipe at the laptop budget, trained on phantoms alone by `python assets/checkpoints/base.py`.
    """
    from .assets import asset

    return load_run(asset("checkpoints", "base"), device=device)


def load_masked(*, device: str | torch.device = "cpu") -> Run:
    """The masked model (MRM) that ships with the kit for the masking explorer, with the decoders of its objective.

    At the laptop budget, trained on phantoms alone by `python assets/checkpoints/masked.py`; it ranks nothing.
    """
    from .assets import asset

    return load_run(asset("checkpoints", "masked"), device=device)
