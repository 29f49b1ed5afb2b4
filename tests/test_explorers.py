"""Explorers without a browser: the pieces of HTML, the shell, and each pure function from a state to a page."""

from __future__ import annotations

import base64
import math
import re

import ipywidgets as widgets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from build_notebook import code, notebook

from medvlp_kit import audit, explorers
from medvlp_kit.errors import KitError
from medvlp_kit.explorers import markup
from medvlp_kit.explorers.matrix import Matrix, false_negatives, matrices
from medvlp_kit.explorers.shell import Explorer
from medvlp_kit.objectives.contrastive import info_nce

ALT = "A picture that says what it shows"


def slider(value=2):
    return widgets.IntSlider(value=value, min=0, max=9, description="number")


# pieces


def test_what_is_given_is_escaped():
    nasty = '<script>alert("x")</script>'
    for made in (
        markup.note(nasty), markup.failure(nasty), markup.table([nasty], [[nasty]], caption=nasty),
        markup.pickable("x", nasty), markup.tile(np.zeros((4, 4)), alt=ALT + nasty, caption=nasty),
        markup.lines({nasty: ([0, 1], [0, 1])}, alt=ALT, x_label=nasty, caption=nasty),
    ):  # fmt: skip
        assert "<script" not in made
    drawn = re.search(r"svg\+xml;base64,([^\"]+)", markup.lines({nasty: ([0, 1], [0, 1])}, alt=ALT))[1]
    assert b"<script" not in base64.b64decode(drawn)


def test_pictures_need_words():
    with pytest.raises(KitError, match="too short"):
        markup.tile(np.zeros((4, 4)), alt="picture")


def test_boxes_and_maps_lie_where_they_should():
    image = np.zeros((8, 8))
    plain = np.asarray(markup.compose(image + 0.5, side=80))
    boxed = np.asarray(markup.compose(image + 0.5, boxes=[(2, 4, 6, 8)], side=80))
    rows, columns = np.nonzero((plain != boxed).any(-1))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (40, 79, 20, 59)  # half-open: the last pixel is inside
    heat = np.full((8, 8), -1.0)
    heat[:4] = 1.0
    over = np.asarray(markup.compose(image, heat=heat, side=80)).astype(int)
    ends = markup.coloured([[1.0, -1.0]], scale=(-1, 1), colours=markup.DIVERGING).astype(int)[0]
    assert np.abs(over[5, 40] - ends[0] / 2).max() < 3 and np.abs(over[75, 40] - ends[1] / 2).max() < 3
    with pytest.raises(KitError, match="scale"):
        markup.coloured([[0.0]], scale=(1, 1))


def test_colours_are_the_scale():
    values = markup.coloured(np.linspace(-2, 2, 9)[None], scale=(-1, 1))
    assert (values[0, 0] == values[0, 2]).all() and (values[0, -1] == values[0, 6]).all()  # cut at the ends
    assert len({tuple(colour) for colour in values[0, 2:7]}) == 5


def test_charts_refuse_nothing_and_skip_nan():
    made = markup.lines({"a": ([0, 1, 2], [1, math.nan, 3])}, alt=ALT)
    drawn = base64.b64decode(re.search(r"base64,([^\"]+)", made)[1]).decode()
    assert "<svg" in drawn and "nan" not in drawn
    with pytest.raises(KitError, match="at least one"):
        markup.lines({"a": ([0], [math.nan])}, alt=ALT)
    with pytest.raises(KitError, match="at least one"):
        markup.histogram({"a": []}, alt=ALT)
    assert "img" in markup.histogram({"a": [1.0, 1.0], "b": [1.0]}, alt=ALT)


@pytest.mark.parametrize("ends", [(-0.0449, 1.42), (0.0, 0.222), (12.0, 13_000.0), (1e-5, 3e-5)])
def test_axes_carry_round_numbers_that_hold_every_point(ends):
    made = markup.lines({"a": ([0.0, 0.37], ends)}, alt=ALT)
    drawn = base64.b64decode(re.search(r"base64,([^\"]+)", made)[1]).decode()
    levels = [float(text) for text in re.findall(r'text-anchor="end"[^>]*>([^<]+)<', drawn)]
    assert levels == sorted(levels) and levels[0] <= ends[0] and levels[-1] >= ends[1] and 2 <= len(levels) <= 5
    assert all(len(f"{level:.6g}") <= 7 for level in levels)


# shell


def test_a_control_moves_the_view_and_nothing_is_drawn_twice():
    seen = []
    explorer = Explorer(lambda number: seen.append(number) or f"<p>{number}</p>", {"number": slider()}, title="Test")
    assert explorer.board.value == "<p>2</p>"
    explorer.controls["number"].value = 5
    assert explorer.board.value == "<p>5</p>" and seen == [2, 5]
    two = Explorer(lambda a, b: seen.append((a, b)) or "", {"a": slider(1), "b": slider(1)}, title="Test")
    two.set(a=3, b=4)
    assert seen[-2:] == [(1, 1), (3, 4)]
    with pytest.raises(KitError, match="no control 'c'"):
        two.set(c=1)


def test_an_error_is_one_line_and_the_audit_finds_it():
    def view(number):
        if number > 3:
            raise ValueError("too\nmuch <b>")
        return f"<p>{number}</p>"

    explorer = Explorer(view, {"number": slider()}, title="Test")
    explorer.controls["number"].value = 4
    assert isinstance(explorer.error, ValueError)
    assert "ValueError: too much &lt;b&gt;" in explorer.board.value and 'role="alert"' in explorer.board.value
    page = notebook(code("1"))
    state = {"m": {"state": {"value": explorer.board.value}}}
    page.metadata["widgets"] = {audit.WIDGET_STATE: {"state": state}}
    assert [fault.rule for fault in audit.widget_errors(page)] == ["error in widget state"]
    explorer.controls["number"].value = 1
    assert explorer.error is None and explorer.board.value == "<p>1</p>"
    with pytest.raises(ValueError, match="too"):
        Explorer(view, {"number": slider(5)}, title="Test").show()


def test_picks_reach_the_view_also_twice():
    seen = []
    explorer = Explorer(lambda picked: seen.append(picked) or markup.pickable("x", picked), {}, title="Test", picked="a")
    for value in ("b", "b"):
        explorer.board.set_trait("picked", value)
        explorer.board.set_trait("picks", explorer.board.picks + 1)
    assert seen == ["a", "b", "b"] and explorer.state == {"picked": "b"}
    moved = Explorer(lambda number: str(number), {"number": slider()}, title="Test", on_pick=lambda p: {"number": int(p)})
    moved.board.set_trait("picked", "7")
    moved.board.set_trait("picks", 1)
    assert moved.board.value == "7" and moved.controls["number"].value == 7


def test_a_control_without_words_is_refused():
    with pytest.raises(KitError, match="no description"):
        Explorer(lambda number: "", {"number": widgets.IntSlider()}, title="Test")


def test_the_static_copy_says_the_same_and_cannot_be_picked():
    made = Explorer(lambda picked: markup.pickable("word", picked), {}, title="A & B", picked="a").static.markup
    assert "word" in made and "A &amp; B" in made and "tabindex" not in made


def test_names():
    assert set(explorers.EXPLORERS) <= set(dir(explorers)) and not set(explorers.EXPLORERS) & set(explorers.EXPLORERS.values())
    with pytest.raises(AttributeError):
        explorers.nothing  # noqa: B018


# similarity matrix


@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(0)
    image = F.normalize(torch.randn(5, 8), dim=-1)
    text = F.normalize(image + 0.5 * torch.randn(5, 8), dim=-1)
    labels = torch.tensor([[0.0, 1], [1, 0], [0, 1], [float("nan"), 1], [0, 0]])
    return Matrix(torch.rand(5, 1, 16, 16), [f"Text <{i}>." for i in range(5)], image, text, labels)


def test_matrices_are_those_of_the_objective(batch):
    found = matrices(batch.image, batch.text, temperature=0.2)
    logits = (batch.image @ batch.text.T / 0.2).double().requires_grad_()
    target = torch.arange(5)
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    loss.backward()
    assert found["loss"] == pytest.approx(loss.item()) == pytest.approx(info_nce(batch.image, batch.text, temperature=0.2).item())
    np.testing.assert_allclose(found["gradient"], logits.grad.numpy(), atol=1e-7)
    np.testing.assert_allclose(found["softmax of the row"].sum(1), 1)


def test_false_negatives_are_equal_labels_off_the_diagonal(batch):
    found = false_negatives(torch.tensor([[0.0, 1], [1, 0], [0, 1], [float("nan"), 1], [float("nan"), 1]]))
    assert {tuple(place) for place in np.argwhere(found)} == {(0, 2), (2, 0), (3, 4), (4, 3)}


@pytest.mark.parametrize("shows", ["cosine", "softmax of the row", "gradient"])
def test_the_matrix_tells_its_pair(batch, shows):
    page = batch(temperature=0.1, shows=shows, picked="0,2")
    assert page.count("data-pick") == 25 and page.count("≡") == 3  # two cells and the sentence
    assert "false negative" in page and "Text &lt;2&gt;." in page and 'aria-pressed="true"' in page
    assert not list(audit._picture_problems(page))
    for wrong in ("x", "0,9", "-1,0"):
        with pytest.raises(KitError, match="cell"):
            batch(temperature=0.1, shows=shows, picked=wrong)
