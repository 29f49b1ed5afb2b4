"""The explorers in JupyterLab in a real browser: moved with mouse and keyboard, and what changes on the page.

Needs a Chromium: the path in MEDVLP_CHROMIUM, or one on the PATH. Pictures are kept under runs/browser.
"""

from __future__ import annotations

import re

import nbformat
import pytest
from build_notebook import notebook
from jupyter_page import FLAGS, NotebookPage, free_port, jupyterlab, served

from medvlp_kit.doctor import find_chromium
from medvlp_kit.explorers.app import app_command

CELLS = (
    "from medvlp_kit import explorers\nfrom medvlp_kit.phantoms import Phantoms\nfrom medvlp_kit.run_folder import load_base\n"
    "run = load_base()\nphantoms = Phantoms(120, seed=0).split('test')",
    "from medvlp_kit.run_folder import load_masked\nexplorers.masking_explorer(load_masked(), phantoms, study=3).show()",
    "explorers.grounding_explorer(run, phantoms, study=3).show()",
    "explorers.attention_explorer(run, phantoms, study=3).show()",
    "from medvlp_kit.explorers.embed import growth\nstages, studies = growth()\n"
    "explorers.embedding_explorer(None, studies, stages=stages).show()",
    "explorers.similarity_matrix(run, phantoms).show()",
    "explorers.retrieval_bench(run, phantoms).show()",
    "explorers.prompt_bench(run, phantoms).show()",
    "explorers.phantom_studio(run).show()",
)
TRAINING = (
    "from medvlp_kit import explorers\nfrom medvlp_kit.budget import budget\nfrom medvlp_kit.phantoms import Phantoms\n"
    "from medvlp_kit.pretrain import pretrain\nsize = budget('tiny').but(train_studies=8_000, epochs=50)",
    "run = await explorers.training_monitor().train(\n"
    "    pretrain, 'chexzero', Phantoms(8_000), budget=size, log_every=2, progress=False)",
    "print('ended after', run.steps, 'of', size.steps)",
)
MANY = (
    "import torch\nfrom medvlp_kit import explorers\nfrom medvlp_kit.phantoms import Phantoms\n"
    "draw = torch.randn(2, 50_000, 16, generator=torch.Generator().manual_seed(0))\n"
    "image, text = torch.nn.functional.normalize(draw, dim=-1)",
    "explorers.embedding_explorer(None, Phantoms(50_000), stages={'one': (image, text)}).show()",
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def chromium():
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium found: install one or set MEDVLP_CHROMIUM to its path; the browser tests were not run")
    return path


@pytest.fixture(scope="module")
def browser(chromium):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    """A function that opens a notebook of some cells."""
    folder = tmp_path_factory.mktemp("lab")
    with jupyterlab(folder) as address:

        def opened(name, *cells):
            document = notebook(*cells)
            for cell in document.cells:
                cell.execution_count = None
            document.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
            nbformat.write(document, folder / f"{name}.ipynb")
            return NotebookPage(browser.new_page(viewport={"width": 1280, "height": 1000}), address, f"{name}.ipynb")

        yield opened


@pytest.fixture(scope="module")
def page(lab):
    """All explorers on one page, run once."""
    opened = lab("explorers", *CELLS)
    opened.run_all()
    return opened


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


def test_a_word_of_the_report_moves_the_maps(page):
    explorer = page.explorer("Where is it?")
    page.until(explorer, lambda text: "working" not in text and "CNR" in text, seconds=60)
    before = explorer.locator("figure img").nth(1).get_attribute("src")
    cell(explorer, "fracture").first.click()
    page.until(explorer, lambda text: "Of a single word no part" in text, seconds=60)
    assert explorer.locator("figure img").nth(1).get_attribute("src") != before
    field = explorer.get_by_role("textbox").last
    field.fill("There is a device on the left side.")
    field.press("Enter")
    page.until(explorer, lambda text: "working" not in text and "device" in text and "Cosine lost" in text, seconds=60)
    page.keep("grounding", explorer)


def test_another_layer_and_another_word_are_asked(page):
    explorer = page.explorer("Where does a layer look?")
    assert "Asked by" in explorer.inner_text()
    cell(explorer, "Pneumothorax").click()
    page.until(explorer, lambda text: "Asked by Pneumothorax" in text)
    explorer.get_by_label("layer").select_option("text: words to words, layer 2")
    page.until(explorer, lambda text: "does not read the image" in text)
    cell(explorer, "word 4").focus()
    page.page.keyboard.press("Enter")
    page.until(explorer, lambda text: "Asked by the word" in text)
    page.keep("attention", explorer)


def test_more_is_hidden_and_less_is_found(page):
    explorer = page.explorer("What is hidden?")

    def hidden(text):
        return int(re.search(r"(\d+) of 64 patches", text)[1])

    before = hidden(explorer.inner_text())
    explorer.get_by_label("pattern").select_option("left half")
    page.until(explorer, lambda text: hidden(text) == 32 != before)
    written = explorer.inner_text()
    explorer.get_by_label("words").select_option("medical")
    page.until(explorer, lambda text: text != written and "pieces hidden" in text)
    explorer.locator("[data-pick]").first.click()
    page.until(explorer, lambda text: "In place of" in text)
    page.keep("masking", explorer)


def test_a_lasso_tells_what_is_inside_and_checkpoints_replay(page):
    explorer = page.explorer("Images and texts in one plane")
    canvas = explorer.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    explorer.locator("button[title*='asso']").first.click()
    box = canvas.bounding_box()
    around = [(0.3, 0.3), (0.7, 0.3), (0.75, 0.7), (0.5, 0.8), (0.25, 0.7), (0.3, 0.32)]
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in around]
    mouse = page.page.mouse
    mouse.move(*points[0])
    mouse.down()
    for x, y in points[1:]:
        mouse.move(x, y, steps=12)
    mouse.up()
    text = page.until(explorer, lambda text: "Findings inside" in text)
    assert int(re.search(r"(\d+) points:", text)[1]) > 5
    page.keep("embedding", explorer)
    handle = explorer.locator(".noUi-handle").first
    handle.focus()
    for _ in range(7):
        page.page.keyboard.press("ArrowLeft")
    page.until(explorer, lambda text: "step 1:" in text)
    explorer.get_by_label("colour").select_option("finding")
    explorer.get_by_label("lines between pairs").check()
    page.until(explorer, lambda text: "step 1:" in text and "at most" not in text)


def test_every_control_has_a_name_and_pictures_have_words(page):
    for title in (
        "A batch as a matrix", "Find images with a sentence", "Prompts on the bench", "Phantom studio", "Where is it?",
        "Where does a layer look?", "What is hidden?", "Images and texts in one plane",
    ):  # fmt: skip
        explorer = page.explorer(title)
        for picture in explorer.locator("img").all():
            assert len(picture.get_attribute("alt")) >= 20
        names = explorer.locator(".widget-label, .widget-label-basic").all_inner_texts()
        assert names and all(name.strip() for name in names if name), title


def test_the_button_stops_a_run_while_its_cell_runs(lab):
    opened = lab("training", *TRAINING)
    opened.start()
    explorer = opened.explorer("Training as it goes")
    opened.until(explorer, lambda text: "Step " in text, seconds=180)
    opened.keep("training", explorer)
    explorer.get_by_role("button", name="Stop and keep").click()
    opened.finish(seconds=60)
    assert "Stopped by the button" in explorer.inner_text()
    told = opened.page.locator(".jp-OutputArea-output", has_text="ended after").last.inner_text()
    steps, whole = (int(number) for number in re.findall(r"\d+", told))
    assert 0 < steps < whole
    opened.page.close()  # an open page goes on drawing, and slows the others


def test_the_app_shows_no_code_and_asks_no_other_host(browser, tmp_path):
    document = notebook("from medvlp_kit import explorers\nexplorers.phantom_studio().show()")
    document.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(document, tmp_path / "app.ipynb")
    port = free_port()
    command, environment = app_command(tmp_path / "app.ipynb", ["--no-browser", f"--port={port}"])
    with served(command, f"http://127.0.0.1:{port}", tmp_path / "app.log", environment):
        page, asked = browser.new_page(viewport={"width": 1280, "height": 1000}), []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"http://127.0.0.1:{port}/", timeout=120_000)
        explorer = page.locator(".medvlp-explorer", has=page.locator("h4", has_text="Phantom studio")).first
        explorer.wait_for(timeout=180_000)
        assert not page.get_by_text("import explorers").count()
        explorer.get_by_label("side").select_option("right")
        explorer.get_by_text(re.compile(r"Impression: .*right")).wait_for(timeout=20_000)
        assert not [url for url in asked if not url.startswith((f"http://127.0.0.1:{port}/", "data:", "blob:"))]
        page.close()


FRAMES = """() => new Promise(done => {
  const canvas = document.querySelector('.medvlp-explorer canvas'), box = canvas.getBoundingClientRect(), times = [];
  let last = performance.now(), i = 0;
  const step = now => {
    times.push(now - last); last = now;
    canvas.dispatchEvent(new WheelEvent('wheel', {deltaY: i % 20 < 10 ? -40 : 40, bubbles: true,
      clientX: box.x + box.width / 2, clientY: box.y + box.height / 2}));
    if (++i < 40) requestAnimationFrame(step); else done(times.slice(5));
  };
  requestAnimationFrame(step);
})"""


def frame_times(opened: NotebookPage) -> list[float]:
    """Milliseconds between frames while the plane of points is zoomed, ascending."""
    opened.explorer("Images and texts in one plane").locator("canvas").first.scroll_into_view_if_needed()
    return sorted(opened.page.evaluate(FRAMES))


def test_a_hundred_thousand_points_move(page, lab, capsys):
    few = frame_times(page)
    opened = lab("many", *MANY)
    opened.run_all()
    explorer = opened.explorer("Images and texts in one plane")
    opened.until(explorer, lambda text: "gap between the clouds" in text)
    times = frame_times(opened)
    with capsys.disabled():
        median, most, usual = times[len(times) // 2], times[-1], few[len(few) // 2]
        print(
            f"\n100,000 points: {median:.0f} ms a frame (median), {most:.0f} ms at most, drawn without a graphics card;"
            f" a few hundred points: {usual:.0f} ms"
        )
    opened.keep("many", explorer)
    opened.page.close()
    assert times[len(times) // 2] < 3_000  # a frozen page; what a frame takes without a graphics card depends on the machine
