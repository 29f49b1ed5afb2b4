"""Checks of lesson 14, hybrid objectives and balance."""

from __future__ import annotations

from .checking import close, exercise, expect, expect_close, expect_not, expect_shape


@exercise
def pull_shares(answer):
    """pull_shares(norms (K,), weights (K,)) -> (K,) shares of the pull. Truth: lengths of weighted gradient vectors."""
    import torch

    gradients = torch.tensor([[3.0, 4.0, 0.0], [0.0, -2.0, 0.0], [0.0, 0.0, 0.5]], dtype=torch.float64)  # (K, P)
    weights = torch.tensor([1.0, 0.5, 8.0], dtype=torch.float64)
    norms = gradients.norm(dim=1)  # 5, 2, 0.5
    lengths = (weights[:, None] * gradients).norm(dim=1)  # 5, 1, 4
    found = answer(norms.clone(), weights.clone())
    expect_shape(found, (3,), name="the shares")
    expect_not(
        found,
        {
            "the weights are not used: an objective pulls with its weight times the length of its gradient": norms / norms.sum(),
            "that is the share of the weights: a weight says nothing without the gradient it multiplies": weights / weights.sum(),
            "these are the lengths, not yet shares: divide by their sum": lengths,
            "you divided by the length of all taken as one vector: shares add up to one": lengths / lengths.norm(),
            "you divided by the sum before weighting: divide by the sum of the weighted lengths": lengths / norms.sum(),
            "you squared the lengths: a pull is a length, not an energy": lengths**2 / (lengths**2).sum(),
            "you divided by the weights: they multiply": (norms / weights) / (norms / weights).sum(),
            "that is a softmax: it would change if all lengths were doubled": lengths.softmax(dim=0),
            "you divided by the greatest length: shares add up to one": lengths / lengths.max(),
        },
    )
    expect_close(found, lengths / lengths.sum(), "weighted lengths 5, 1 and 4 give shares 0.5, 0.1 and 0.4")
    quiet = answer(torch.tensor([2.0, 0.0, 6.0]), torch.ones(3))
    expect_close(quiet, torch.tensor([0.25, 0.0, 0.75]), "an objective without a gradient has a share of zero")


@exercise
def scheduled_weight(answer):
    """scheduled_weight(step, points) -> the weight at a step, straight lines between points. Truth: the kit's Scheduled."""
    import torch

    from ..objectives.balance import Scheduled

    points = ((100, 0.0), (300, 1.0), (400, 0.5))

    def truth(step: int) -> float:
        balance = Scheduled(("a",), {"a": points}).eval()
        balance.step.fill_(step)
        return float(balance(torch.ones(1))[1][0])

    found = answer(150, points)
    expect(found is not None, "your function returns None: does it end with return?")
    expect_not(
        float(found),
        {
            "the weight jumps at a point: between two points it follows a straight line": 0.0,
            "that is the weight of the point that comes next: between two points it follows a straight line": 1.0,
            "you measured from step 0: the line begins at the step of its first point": 0.5,
            "the line runs backwards: at the first of two points the weight is the first one's": 0.75,
            "you drew one line from the first point to the last: each pair of neighbours has its own": 50 / 300 * 0.5,
        },
    )
    expect_close(float(found), truth(150), "a quarter of the way from (100, 0) to (300, 1) the weight is 0.25")
    before = float(answer(0, points))
    expect(not close(before, -0.5), "before the first point you went on down the line: there the weight is level")
    expect_close(before, truth(0), "before the first point the weight is the first point's")
    after = float(answer(500, points))
    expect(not close(after, 0.0), "after the last point you went on down the line: there the weight is level")
    expect_close(after, truth(500), "after the last point the weight is the last point's")
    expect_close(float(answer(360, points)), truth(360), "a line may also fall: between (300, 1) and (400, 0.5)")
    expect_close(float(answer(300, points)), truth(300), "at a point the weight is that point's")
    expect_close(float(answer(7, ((5, 2.0),))), 2.0, "a single point is a level line")


@exercise
def equal_pull(answer):
    """equal_pull(norms (K,)) -> weights (K,), mean one, under which all pull alike. Truth: the kit's GradientNorm."""
    import torch

    from ..objectives.balance import GradientNorm

    def truth(norms):
        balance = GradientNorm(tuple("abcd"[: len(norms)]))
        balance.adapt(torch.ones(len(norms)), norms)
        return balance.weights()

    norms = torch.tensor([4.0, 1.0, 0.5])
    found = answer(norms.clone())
    expect_shape(found, (3,), name="the weights")
    inverse, squares = 1 / norms, 1 / norms**2
    expect_not(
        found,
        {
            "the loudest got the greatest weight: weights are proportional to one over the norm": 3 * norms / norms.sum(),
            "these weights add up to one: their mean shall be one, so that the learning rate keeps its meaning": inverse
            / inverse.sum(),
            "these equalise the pull, but their mean is not one: scale them": inverse,
            "you divided by the square of the norm: then the quietest pulls hardest": 3 * squares / squares.sum(),
            "all pull alike with length one or the mean norm, but the mean weight is not one: scale the weights": inverse
            * norms.mean(),
            "that is a softmax: it does not make the products of weight and norm equal": 3 * (-norms).softmax(dim=0),
            "that equalises by the root of the norm: the pull is weight times norm": 3 * inverse.sqrt() / inverse.sqrt().sum(),
            "no weight differs: these objectives pull with 4, 1 and 0.5": torch.ones(3),
        },
    )
    expect_close(found, truth(norms), "weight times norm must be the same for all, and the mean weight one")
    silent = answer(torch.tensor([2.0, 0.0, 1.0]))
    expect(
        bool(torch.isfinite(torch.as_tensor(silent)).all()),
        "an objective without a gradient made the weights infinite or NaN: leave it at one and balance the others",
    )
    expect_close(
        silent,
        truth(torch.tensor([2.0, 0.0, 1.0])),
        "an objective without a gradient keeps the weight one, and the mean over the others is one",
    )


@exercise
def change_of_loss(answer):
    """change_of_loss(norms (K,), cosines (K, K), weights (K,), k) -> dL_k per unit of a small step. Truth: taking the step."""
    import torch

    gradients = torch.tensor([[3.0, 4.0], [-2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)  # (K, P) of three linear losses
    norms = gradients.norm(dim=1)
    cosines = (gradients / norms[:, None]) @ (gradients / norms[:, None]).T
    weights = torch.tensor([1.0, 4.0, 3.0], dtype=torch.float64)

    def truth(weights, k: int) -> float:
        """What a linear loss loses when the parameters go one unit down the weighted sum."""
        moved = -(weights[:, None] * gradients).sum(dim=0)  # (P,)
        return float(gradients[k] @ moved)

    found = answer(norms.clone(), cosines.clone(), weights.clone(), 0)
    expect(found is not None, "your function returns None: does it end with return?")
    expect_shape(torch.as_tensor(found), (), name="the change")
    lengths, expected = weights * norms, truth(weights, 0)
    expect_not(
        float(found),
        {
            "the sign is turned: the step goes down the sum of the gradients": -expected,
            "only its own gradient is counted: the others move the same parameters": float(-lengths[0] * norms[0]),
            "the cosines are not used: only what lies along the gradient of loss k changes it": float(
                -(lengths.sum() * norms[0])
            ),
            "the length of the gradient of loss k is missing": float(-(lengths @ cosines[0])),
            "the weights are not used": truth(torch.ones(3, dtype=torch.float64), 0),
            "its own gradient is left out: it pulls too": expected + float(lengths[0] * norms[0]),
            "that is the change of the whole weighted sum": sum(float(weights[j]) * truth(weights, j) for j in range(3)),
            "the lengths of the other gradients are missing": float(-(weights @ cosines[0]) * norms[0]),
        },
    )
    expect_close(found, expected, "minus the sum over j of weight_j |g_j| |g_k| cos(j, k)")
    for k in (1, 2):
        expect_close(answer(norms, cosines, weights, k), truth(weights, k), f"wrong for k = {k}: its row of the cosines counts")
