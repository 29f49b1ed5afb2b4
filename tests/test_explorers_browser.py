"""The explorers in JupyterLab in a real browser: moved with mouse and keyboard, and what changes on the page.

Needs a Chromium: the path in MEDVLP_CHROMIUM, or one on the PATH. Pictures are kept under runs/browser.
"""

from __future__ import annotations

import re

import nbformat
import pytest
from build_notebook import notebook
from jupyter_page import FLAGS, NotebookPage, jupyterlab

from medvlp_kit.doctor import find_chromium

CELLS = (
    "from medvlp_kit import explorers\nfrom medvlp_kit.phantoms import Phantoms\nfrom medvlp_kit.run_folder import load_base\n"
    "run = load_base()\nphantoms = Phantoms(120, seed=0).split('test')",
    "explorers.similarity_matrix(run, phantoms).show()",
    "explorers.retrieval_bench(run, phantoms).show()",
    "explorers.prompt_bench(run, phantoms).show()",
    "explorers.phantom_studio(run).show()",
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def chromium():
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium found: install one or set MEDVLP_CHROMIUM to its path; the browser tests were not run")
    return path


@pytest.fixture(scope="module")
def page(chromium, tmp_path_factory):
    """All explorers on one page, run once."""
    from playwright.sync_api import sync_playwright

    folder = tmp_path_factory.mktemp("lab")
    document = notebook(*CELLS)
    document.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(document, folder / "explorers.ipynb")
    with jupyterlab(folder) as address, sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=chromium, args=FLAGS)
        opened = NotebookPage(browser.new_page(viewport={"width": 1280, "height": 1000}), address, "explorers.ipynb")
        opened.run_all()
        yield opened
        browser.close()


def cell(explorer, place: str):
    return explorer.locator(f"[data-pick='{place}']")


def test_the_matrix_is_picked_with_the_mouse_and_with_the_keyboard(page):
    explorer = page.explorer("A batch as a matrix")
    page.until(explorer, lambda text: "Picked: the true pair" in text)
    cell(explorer, "0,3").click()
    text = page.until(explorer, lambda text: "Picked: a negative" in text or "Picked: a false negative" in text)
    assert "Text 4:" in text
    cell(explorer, "2,2").focus()
    page.page.keyboard.press("Enter")
    page.until(explorer, lambda text: "Picked: the true pair" in text and "Text 3:" in text)
    assert cell(explorer, "2,2").evaluate("e => e === document.activeElement")  # the focus is not lost by drawing anew
    page.keep("matrix", explorer)


def test_the_temperature_moves_the_loss(page):
    explorer = page.explorer("A batch as a matrix")

    def loss(text):
        return float(re.search(r"Loss (\d+\.\d+)", text)[1])

    before = loss(explorer.inner_text())
    handle = explorer.locator(".noUi-handle").first
    handle.focus()
    for _ in range(4):
        page.page.keyboard.press("ArrowRight")
    page.until(explorer, lambda text: abs(loss(text) - before) > 0.02)


def test_a_typed_query_finds_other_images(page):
    explorer = page.explorer("Find images with a sentence")
    before = explorer.inner_text()
    field = explorer.get_by_role("textbox")
    field.fill("There is a large right pleural effusion.")
    field.press("Enter")
    text = page.until(explorer, lambda text: text != before and "right pleural effusion" in text)
    assert text.count("right pleural effusion") >= 2
    page.keep("retrieval", explorer)
    field.fill("")
    field.press("Enter")
    page.until(explorer, lambda text: "the prompt is empty" in text)  # an error is one line, and the explorer goes on
    field.fill("Normal chest.")
    field.press("Enter")
    page.until(explorer, lambda text: "no finding" in text)


def test_other_prompts_move_the_auroc(page):
    explorer = page.explorer("Prompts on the bench")

    def area(text):
        return re.search(r"AUROC (\d\.\d+); 0.5 is chance", text)[1]

    before = area(explorer.inner_text())
    field = explorer.get_by_role("textbox").nth(1)
    field.fill("There is a fracture.")
    field.press("Enter")
    page.until(explorer, lambda text: area(text) != before)
    explorer.get_by_role("combobox").select_option("Pneumothorax")
    page.until(explorer, lambda text: area(text) != before and float(area(text)) > 0.7)
    page.keep("prompts", explorer)


def test_the_studio_draws_writes_and_asks_the_model(page):
    explorer = page.explorer("Phantom studio")
    explorer.get_by_label("side").select_option("right")
    page.until(explorer, lambda text: "right" in text.lower())
    explorer.get_by_label("finding").select_option("Pneumothorax")
    text = page.until(explorer, lambda text: "pneumothorax" in text.lower() and "effusion. " not in text.lower())
    assert "What KAD sees" in text
    explorer.get_by_label("language").select_option("es")
    page.until(explorer, lambda text: "neumot" in text.lower())
    page.keep("studio", explorer)


def test_every_control_has_a_name_and_pictures_have_words(page):
    for title in ("A batch as a matrix", "Find images with a sentence", "Prompts on the bench", "Phantom studio"):
        explorer = page.explorer(title)
        for picture in explorer.locator("img").all():
            assert len(picture.get_attribute("alt")) >= 20
        names = explorer.locator(".widget-label, .widget-label-basic").all_inner_texts()
        assert names and all(name.strip() for name in names if name), title
