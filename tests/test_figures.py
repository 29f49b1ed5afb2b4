"""Figures reach the page with words, small, closed, and in the house style; plots refuse what they cannot draw."""

from __future__ import annotations

import base64
import io
import re

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from build_notebook import code, notebook, shown
from PIL import Image

from medvlp_kit import audit, figures
from medvlp_kit.errors import KitError
from medvlp_kit.study import Region

ALT = "The loss falls from 4.2 to 1.1 within 200 steps"


def decoded(picture) -> Image.Image:
    data = base64.b64decode(re.search(r'base64,([^"]+)"', str(picture))[1])
    return Image.open(io.BytesIO(data))


def pixels(picture) -> np.ndarray:
    return np.asarray(decoded(picture).convert("RGB"))


def line(title: str = ""):
    fig, ax = figures.new()
    ax.plot([0, 1], [1, 2])
    ax.set_title(title)
    return fig


def test_show_gives_a_figure_that_the_audit_accepts():
    picture = figures.show(line(), alt=ALT, caption='Training <of> "ConVIRT"')
    assert str(picture).startswith("<figure") and f'alt="{ALT}"' in str(picture)
    assert "Training &lt;of&gt; &quot;ConVIRT&quot;</figcaption>" in str(picture)
    assert picture._repr_mimebundle_()["text/plain"] == f"Figure: {ALT}"
    assert audit.audit(notebook(code("show()", shown(text_html=str(picture))))) == []


@pytest.mark.parametrize(
    ("alt", "title", "caption"),
    [
        ("too short", "", ""),
        ("nineteen characters"[:19], "", ""),
        ("   a    short     one   ", "", ""),
        ("The loss of the whole run", "The loss of the  whole run.", ""),
        ("The loss of the whole run", "", "the loss of the whole run"),
    ],
)
def test_alt_that_says_nothing_is_refused(alt, title, caption):
    with pytest.raises(KitError, match="say "):
        figures.show(line(title), alt=alt, caption=caption)


def test_twenty_characters_are_enough():
    assert "twenty characters ok" in str(figures.show(line(), alt="twenty characters ok"))


def test_alt_cannot_break_out_of_its_attribute():
    picture = figures.show(line(), alt='" onerror="alert(1)" and twenty more letters')
    assert 'onerror="' not in str(picture)


def test_picture_is_white_opaque_small_and_not_wider_than_the_page():
    fig, ax = figures.new(size=(30, 2))
    ax.plot([0, 1])
    picture = figures.show(fig, alt=ALT)
    image = decoded(picture)
    assert image.width <= 1100
    assert image.mode in ("P", "RGB")  # no transparency, so a dark page changes nothing
    assert (pixels(picture)[0, 0] == 255).all()
    assert len(str(picture)) < 30_000


def test_house_style_holds_whatever_the_reader_has_set():
    history = pd.DataFrame({"step": [0, 1, 2], "loss": [3.0, 2.0, 1.0]})

    def drawn() -> str:
        return str(figures.show(figures.curves(history, title="Loss", references={"chance": 2.5}), alt=ALT))

    mine = drawn()
    with matplotlib.rc_context({"font.size": 30, "figure.facecolor": "black", "xtick.labelsize": 30}):
        assert drawn() == mine


def test_quantising_keeps_a_radiograph_as_it_is():
    ramp = torch.linspace(0, 1, 256).repeat(64, 1).reshape(1, 1, 64, 256)
    picture = figures.show(figures.grid(ramp, cell=4.0), alt=ALT)
    greys = np.unique(pixels(picture)[:, :, 0])
    assert len(greys) > 150


def test_figures_are_closed():
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    fig = pyplot.figure()
    figures.show(fig, alt=ALT)
    assert pyplot.get_fignums() == before


def test_grid_shares_one_grey_scale():
    images = torch.stack([torch.full((1, 8, 8), 0.2), torch.full((1, 8, 8), 0.8)])
    fig = figures.grid(images)
    assert {ax.images[0].get_clim() for ax in fig.axes} == {(0.0, 1.0)}
    wide = figures.grid(images * 10 - 5)
    assert {ax.images[0].get_clim() for ax in wide.axes} == {(-3.0, 3.0)}


def test_grid_draws_half_open_boxes_around_their_pixels():
    fig = figures.grid(torch.zeros(1, 1, 8, 8), boxes=[[Region("Edema", (2, 3, 5, 7))]])
    box = fig.axes[0].patches[0]
    assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == (1.5, 2.5, 3.0, 4.0)
    assert fig.axes[0].texts[0].get_text() == "Edema"


def test_grid_lays_heatmaps_over_the_whole_image_on_one_scale():
    heat = torch.stack([torch.full((2, 2), -1.0), torch.full((2, 2), 3.0)])
    fig = figures.grid(torch.zeros(2, 1, 8, 8), heatmaps=heat)
    over = [ax.images[1] for ax in fig.axes[:2]]
    assert {one.get_clim() for one in over} == {(-3.0, 3.0)}
    assert over[0].get_extent() == [-0.5, 7.5, 7.5, -0.5]
    assert len(fig.axes) == 3  # the colour bar


def test_grid_hides_unused_places_and_takes_colour():
    fig = figures.grid(torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)), columns=2)
    assert len(fig.axes) == 4 and not fig.axes[3].images
    assert fig.axes[0].images[0].get_array().shape == (8, 8, 3)


@pytest.mark.parametrize("shape", [(8, 8), (1, 2, 8, 8), (0, 1, 8, 8)])
def test_grid_names_a_wrong_shape(shape):
    with pytest.raises(KitError, match="grid"):
        figures.grid(torch.zeros(shape))


def test_grid_needs_one_entry_an_image():
    with pytest.raises(KitError, match="2 images but 1 titles"):
        figures.grid(torch.zeros(2, 1, 8, 8), titles=["one"])


def test_curves_draw_columns_and_references():
    history = pd.DataFrame({"step": range(50), "loss": np.linspace(4, 1, 50)})
    fig = figures.curves(history, smooth=5, references={"chance": 4.16})
    labels = [one.get_text() for one in fig.axes[0].get_legend().get_texts()]
    assert labels == ["loss", "chance"]
    with pytest.raises(KitError, match="unknown history column 'los': did you mean 'loss'"):
        figures.curves(history, columns="los")


def test_heatmap_centres_signed_data_and_writes_few_values():
    fig = figures.heatmap([[-1.0, 2.0], [0.5, 0.0]])
    assert fig.axes[0].images[0].get_clim() == (-2.0, 2.0)
    assert [text.get_text() for text in fig.axes[0].texts] == ["-1", "2", "0.5", "0"]
    assert not figures.heatmap(np.zeros((20, 20))).axes[0].texts
    with pytest.raises(KitError, match="matrix"):
        figures.heatmap(np.zeros(3))


def test_interval_plot_shows_interval_control_and_chance():
    results = pd.DataFrame({"name": ["a", "b"], "estimate": [0.9, 0.7], "low": [0.8, 0.6], "high": [0.95, 0.75]})
    fig = figures.interval_plot(results.assign(control=[0.5, 0.4]), chance=0.5, x_label="AUROC")
    labels = [text.get_text() for text in fig.legends[0].get_texts()]
    assert sorted(labels) == ["chance (0.5)", "control", "estimate and interval"]
    whiskers = fig.axes[0].containers[0].lines[2][0].get_segments()
    assert [tuple(segment[:, 0]) for segment in whiskers] == [(0.8, 0.95), (0.6, 0.75)]
    with pytest.raises(KitError, match="unknown results column 'low'"):
        figures.interval_plot(results.drop(columns="low"))


def test_the_legend_of_an_interval_plot_is_never_wider_than_the_picture():
    results = pd.DataFrame({"name": ["a"], "estimate": [0.9], "low": [0.8], "high": [0.95], "control": [0.5]})
    columns = []
    for words in ("coin", "always the centre of the picture", "a name that fills the whole width of the picture by itself"):
        fig = figures.interval_plot(results, chance=0.5, chance_name=words, control_name=words)
        [legend] = fig.legends
        columns.append(legend._ncols)
        assert legend.get_texts()[1].get_text() == f"{words} (0.5)"
        assert legend.get_window_extent().width <= fig.bbox.width
    assert columns == [3, 2, 1]


def test_scatter_gives_each_kind_its_colour_and_marker():
    fig = figures.scatter(torch.zeros(4, 2), labels=["a", "b", "a", "c"])
    looks = [(tuple(one.get_facecolor()[0]), len(one.get_paths()[0])) for one in fig.axes[0].collections]
    assert [len(one.get_offsets()) for one in fig.axes[0].collections] == [2, 1, 1]
    assert len({colour for colour, _ in looks}) == 3
    with pytest.raises(KitError, match="PCA"):
        figures.scatter(torch.zeros(4, 3))


def test_table_has_caption_heads_and_sensible_numbers():
    frame = pd.DataFrame({"AUROC": [0.91234, float("nan")], "n": [1200, 3], "p<": [1e-6, 0.25]}, index=["Edema", "b"])
    shown_table = figures.table(frame, caption="Zero-shot")
    markup = str(shown_table)
    assert ">Zero-shot</caption>" in markup and markup.count('scope="col"') == 4
    assert markup.count('scope="row"') == 2 and "p&lt;" in markup
    for text in (">0.912<", ">–<", ">1200<", ">1e-06<", ">0.250<"):
        assert text in markup
    assert "Edema" in shown_table.text and "Zero-shot" in shown_table.text
    assert 'scope="col"' in str(figures.table(pd.DataFrame({"a": [1]}), caption="c"))
    assert str(figures.table(pd.DataFrame({"a": [1]}), caption="c")).count("<th") == 3  # head, column, row
    with pytest.raises(KitError, match="caption"):
        figures.table(frame, caption=" ")
