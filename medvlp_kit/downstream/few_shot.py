"""Few-shot: k cases with a finding and k without. A linear probe on them, or a cache of them beside the prompts.

Tip-Adapter (Zhang et al., ECCV 2022) trains nothing: it keeps the embeddings of the shots as keys and their labels as
values, and adds what similar shots say to what the prompts say.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..errors import KitError, unknown
from ..study import Tokenizer
from .classification import auroc, pair_means
from .encode import encode_texts, evaluating, text_to
from .frozen import Transfer
from .linear_probe import STRENGTHS, fit_logistic
from .multilabel import multilabel
from .prompts import as_prompt_set
from .result import Result

SHOTS = (1, 2, 4, 8, 16, 32, 64)
METHODS = ("linear probe", "adapter")
ALPHAS = (0.0, 0.3, 1.0, 3.0, 10.0, 30.0)  # weight of the cache; 0 leaves the prompts alone
BETAS = (1.0, 3.0, 10.0, 30.0)  # how fast a shot's word fades with its distance


def draw_shots(labels, *, shots: Sequence[int] = SHOTS, seed: int = 0) -> dict[int, list[np.ndarray]]:
    """k -> for every finding the rows of k cases with it and k without, (2k,), those with it first.

    Nested: the shots of k are among those of every larger k. Each finding has its own shots.
    """
    labels = np.asarray(labels, dtype=float)
    most, generator = max(shots), np.random.default_rng(seed)
    if min(shots) < 1:
        raise KitError(f"shots {tuple(shots)}: at least one case with and one without each finding")
    drawn: dict[int, list[np.ndarray]] = {k: [] for k in sorted(shots)}
    for column, truth in enumerate(labels.T):
        sides = [np.flatnonzero(truth == value) for value in (1, 0)]
        if min(map(len, sides)) < most:
            raise KitError(
                f"finding {column} has {len(sides[0])} cases with and {len(sides[1])} without it, too few for {most} shots: "
                "give more training studies or fewer shots"
            )
        orders = [generator.permutation(side) for side in sides]
        for k in drawn:
            drawn[k].append(np.concatenate([order[:k] for order in orders]))
    return drawn


def tip_adapter(
    query: np.ndarray, keys: np.ndarray, values: np.ndarray, zero_shot: np.ndarray, *, alpha: float, beta: float
) -> np.ndarray:
    """zero_shot + alpha * exp(-beta (1 - query keysᵀ)) values, (N, C).

    query (N, D) and keys (K, D): unit image embeddings; values (K, C): one-hot labels of the shots, or +1 and -1 in one
    column for a finding that is there or not; zero_shot (N, C): the prompts' logits. Two one-hot columns subtracted give
    the same as one column of signs.
    """
    return zero_shot + alpha * np.exp(-beta * (1 - query @ keys.T)) @ values


def prompt_logits(model, tokenizer: Tokenizer, embeddings: dict[str, np.ndarray], prompts, names, *, length: int) -> dict:
    """Zero-shot logits (N, C) of unit image embeddings, split by split: cosine differences over the temperature.

    Tip-Adapter lives in the joint space, so this is the cosine also for a system that ranks by something else.
    """
    import torch

    prompts = as_prompt_set(prompts, names).only(names)
    text = encode_texts(model, tokenizer, prompts.sentences, length=length)
    with evaluating(model):
        unit = model.embed_text(text_to(text, next(model.parameters()).device)).float().cpu()  # (P, D)
        temperature = float(model.temperature())
    ends = pair_means(unit.T, prompts)  # (D, C, 2)
    ends = ends / ends.norm(dim=0).clamp_min(1e-6)
    axis = (ends[..., 0] - ends[..., 1]).numpy() / temperature  # (D, C)
    return {name: np.asarray(torch.as_tensor(part) @ torch.as_tensor(axis)) for name, part in embeddings.items()}


class FewShot:
    """Both methods on one draw of shots: zero-shot logits and features are made once, then every k is cheap.

    Penalty, alpha and beta are chosen on the validation studies, one for all findings. That is more labels than k: an
    allowance that Tip-Adapter's authors make too, and that the result's rule states.
    """

    def __init__(self, data: Transfer, tokenizer: Tokenizer, *, prompts=None, shots: Sequence[int] = SHOTS, seed: int = 0):
        self.data, self.seed = data, seed
        self.rows = draw_shots(data.train.labels, shots=shots, seed=seed)
        splits = {split: data.part(split).embedding for split in ("validation", "test")}
        self.prompts = as_prompt_set(prompts, data.names).only(data.names)
        self.zero = prompt_logits(
            data.model, tokenizer, splits, self.prompts, data.names, length=data.budget.text_length
        )

    def scores(self, k: int, method: str) -> np.ndarray:
        """Test scores (N, C) of one method with k shots of each kind a finding."""
        if method not in METHODS:
            raise unknown("few-shot method", method, METHODS)
        if k not in self.rows:
            raise unknown("number of shots", str(k), [str(known) for known in self.rows])
        settings = [(s,) for s in STRENGTHS] if method == "linear probe" else list(itertools.product(ALPHAS, BETAS))
        made = self._probes(k) if method == "linear probe" else self._adapters(k)
        best, best_value = None, -np.inf
        for setting in settings:
            value = np.nanmean(auroc(made("validation", *setting), self.data.validation.labels))
            if value > best_value:
                best, best_value = setting, value
        return made("test", *best)

    def _probes(self, k: int):
        train, scaled = self.data.train.pooled, self.data.train.pooled.std() or 1.0
        fitted: dict[float, list] = {}

        def made(split: str, strength: float) -> np.ndarray:
            if strength not in fitted:
                # two or eight cases give no standard deviation to divide by, so one number scales all features
                fitted[strength] = [
                    fit_logistic(train[rows] / scaled, _signs(rows)[:, None] > 0, strength=strength)
                    for rows in self.rows[k]
                ]
            features = self.data.part(split).pooled / scaled
            return np.concatenate([features @ weight + intercept for weight, intercept, _ in fitted[strength]], axis=1)

        return made

    def _adapters(self, k: int):
        keys = self.data.train.embedding

        def made(split: str, alpha: float, beta: float) -> np.ndarray:
            query, zero = self.data.part(split).embedding, self.zero[split]
            columns = [
                tip_adapter(
                    query, keys[rows], _signs(rows)[:, None] / k, zero[:, [column]], alpha=alpha, beta=beta
                )
                for column, rows in enumerate(self.rows[k])
            ]
            return np.concatenate(columns, axis=1)

        return made


def _signs(rows: np.ndarray) -> np.ndarray:
    """+1 for the first half of the shots, which have the finding, and -1 for the second."""
    return np.repeat((1.0, -1.0), len(rows) // 2)


def few_shot(
    data: Transfer, tokenizer: Tokenizer, *, k: int = 16, method: str = "adapter", prompts=None, seed: int = 0
) -> Result:
    """Macro-AUROC with k shots of each kind a finding; controls: random weights, and for the adapter zero-shot.

    An adapter that is no better than its own prompts has learned nothing from its shots, so they are a control.
    """
    shot = FewShot(data, tokenizer, prompts=prompts, shots=(k,), seed=seed)
    other = FewShot(data.control, tokenizer, prompts=prompts, shots=(k,), seed=seed)
    controls = {"random weights": other.scores(k, method)}
    if method == "adapter":
        controls["zero-shot"] = shot.zero["test"]
    return multilabel(
        shot.scores(k, method), data.test.labels, data.names, task=f"few-shot {method}", controls=controls,
        also={} if method == "adapter" else {"zero-shot": shot.zero["test"]}, prompts=str(shot.prompts),
        split=data.where, resamples=data.budget.resamples, seed=seed,
        rule=(
            f"{k} cases with and {k} without each finding, drawn by the seed; "
            + ("penalty" if method == "linear probe" else "alpha and beta")
            + " chosen on all validation studies, one for all findings"
        ),
    )  # fmt: skip


def few_shot_curve(
    data: Transfer, tokenizer: Tokenizer, *, shots: Sequence[int] = SHOTS, draws: int = 3, prompts=None, seed: int = 0
) -> pd.DataFrame:
    """Test macro-AUROC of both methods over k and over draws of the shots: columns k, draw, method, AUROC.

    k = 0 is zero-shot, the same for every draw.
    """
    rows = []
    for draw in range(draws):
        shot = FewShot(data, tokenizer, prompts=prompts, shots=shots, seed=seed + draw)
        zero = np.nanmean(auroc(shot.zero["test"], data.test.labels))
        rows.append({"k": 0, "draw": draw, "method": "zero-shot", "AUROC": zero})
        for k, method in itertools.product(sorted(shots), METHODS):
            value = np.nanmean(auroc(shot.scores(k, method), data.test.labels))
            rows.append({"k": k, "draw": draw, "method": method, "AUROC": value})
    return pd.DataFrame(rows)
