"""The survey's systems, each as a short composition of encoders, fusion and objectives.

`names()` lists them, `get(name)` describes one, `build(name, budget=...)` makes model and objective. A family of
systems is one file in this folder; a new file is found by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from ..budget import Budget
from ..budget import budget as named_budget
from ..errors import KitError, unknown

if TYPE_CHECKING:
    from ..model import VisionLanguageModel
    from ..objectives import Objective


@dataclass(frozen=True)
class Recipe:
    """One system. Sizes come from the budget; a recipe says only what makes the system itself.

    objective: model -> Objective. `model_options` go to `VisionLanguageModel`, `image_options` and `text_options` to
    the encoders, `fusion_options` to the fusion module. scorer: (model, objective) -> what `model.similarity` computes,
    for systems that rank by something else than the cosine of pooled embeddings.
    """

    name: str
    title: str
    paper: str
    year: int
    idea: str
    objectives: tuple[str, ...]
    objective: Callable[[VisionLanguageModel], Objective] = field(repr=False)
    differs: str = ""  # where this composition departs from the published system, beyond size and data
    scorer: Callable[[VisionLanguageModel, Objective], Callable] | None = field(default=None, repr=False)
    image_encoder: str | None = None  # a timm name; None takes the budget's
    text_encoder: str = "bert"
    fusion: str | None = None  # none | single_stream | dual_stream; None: a dual encoder that never fuses
    views: tuple[str, ...] = ("frontal",)
    texts: tuple[str, ...] = ("report",)
    text_length: int | None = None  # tokens a training text is cut at, where the budget allows more
    findings: bool = False  # whether the objective reads what is stated of each study, with side and zone
    model_options: dict[str, Any] = field(default_factory=dict)
    image_options: dict[str, Any] = field(default_factory=dict)
    text_options: dict[str, Any] = field(default_factory=dict)
    fusion_options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Built:
    model: VisionLanguageModel
    objective: Objective
    recipe: Recipe


_REGISTRY: dict[str, Recipe] = {}


def register(recipe: Recipe) -> Recipe:
    """Put a recipe on the list; a name is taken once."""
    if recipe.name in _REGISTRY:
        raise KitError(f"two recipes are called {recipe.name!r}: rename one")
    _REGISTRY[recipe.name] = recipe
    return recipe


def _read_folder() -> None:
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")


def names() -> list[str]:
    _read_folder()
    return sorted(_REGISTRY)


def get(name: str | Recipe) -> Recipe:
    if isinstance(name, Recipe):
        return name
    if name not in names():
        raise unknown("recipe", name, _REGISTRY)
    return _REGISTRY[name]


def build(
    name: str | Recipe, *, budget: Budget | str | None = None, vocabulary_size: int | None = None, channels: int = 1
) -> Built:
    """Model and objective of one recipe at one budget, with fresh weights (seed torch before calling)."""
    from ..encoders.image import build_image_encoder
    from ..encoders.text import build_text_encoder
    from ..model import VisionLanguageModel

    recipe, sizes = get(name), named_budget(budget)
    image_encoder = build_image_encoder(
        recipe.image_encoder or sizes.image_model, channels=channels, image_size=sizes.image_size, **recipe.image_options
    )
    text_encoder = build_text_encoder(
        recipe.text_encoder,
        vocabulary_size=vocabulary_size or sizes.vocabulary_size,
        width=sizes.text_width,
        layers=sizes.text_layers,
        heads=sizes.text_heads,
        length=sizes.text_length,
        **recipe.text_options,
    )
    fusion = None
    if recipe.fusion is not None:
        from ..fusion import build_fusion

        fusion = build_fusion(
            recipe.fusion,
            image_width=image_encoder.width,
            text_width=text_encoder.width,
            width=sizes.text_width,
            heads=sizes.text_heads,
            **recipe.fusion_options,
        )
    model = VisionLanguageModel(
        image_encoder, text_encoder, embedding_width=sizes.embedding_width, fusion=fusion, **recipe.model_options
    )
    objective = recipe.objective(model)
    if recipe.scorer is not None:
        model.score_with(recipe.scorer(model, objective))
    return Built(model, objective, recipe)
