"""Take the README's pictures of the explorers: python assets/pictures/explorers.py [--dark] [--width 800] [--out FOLDER]

Opens a notebook of them in JupyterLab in a headless Chromium, waits until each has drawn everything, and keeps pictures of
three here; with --out, of all of them and elsewhere, to be looked at. Needs the extra "test" and a Chromium.
"""

import argparse
import io
import sys
import tempfile
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))
from jupyter_page import FLAGS, NotebookPage, jupyterlab  # noqa: E402

from medvlp_kit.doctor import find_chromium  # noqa: E402

START = """from medvlp_kit import explorers
from medvlp_kit.explorers.embed import growth
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.run_folder import load_base, load_masked
run, masked, test = load_base(), load_masked(), Phantoms(120, seed=0).split("test")
stages, studies = growth()"""
SHOWN = {  # picture -> (title of the explorer, the cell that shows it)
    "grounding": ("Where is it?", "explorers.grounding_explorer(run, test, study=3, phrase='A left mid rib fracture.').show()"),
    "masking": ("What is hidden?", "explorers.masking_explorer(masked, test, study=3).show()"),
    "embedding": (
        "Images and texts in one plane",
        "explorers.embedding_explorer(None, studies, stages=stages, colour='modality').show()",
    ),
    "attention": ("Where does a layer look?", "explorers.attention_explorer(run, test, study=3).show()"),
    "matrix": ("A batch as a matrix", "explorers.similarity_matrix(run, test).show()"),
    "retrieval": ("Find images with a sentence", "explorers.retrieval_bench(run, test).show()"),
    "prompts": ("Prompts on the bench", "explorers.prompt_bench(run, test, finding='Pneumothorax').show()"),
    "studio": ("Phantom studio", "explorers.phantom_studio(run).show()"),
}
KEPT = ("grounding", "masking", "embedding")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    chromium = find_chromium()
    if chromium is None:
        sys.exit("error: no Chromium found: install one, or set MEDVLP_CHROMIUM to its path")
    names = tuple(SHOWN) if asked.out else KEPT
    with tempfile.TemporaryDirectory() as place:
        document = new_notebook(cells=[new_code_cell(START), *(new_code_cell(SHOWN[name][1]) for name in names)])
        document.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(document, Path(place) / "pictures.ipynb")
        take(Path(place), names, chromium, asked)


def take(place: Path, names, chromium: str, asked) -> None:
    from playwright.sync_api import sync_playwright

    folder = asked.out or HERE
    folder.mkdir(parents=True, exist_ok=True)
    with jupyterlab(place, dark=asked.dark) as address, sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=chromium, args=FLAGS)
        page = NotebookPage(browser.new_page(viewport={"width": asked.width, "height": 2400}), address, "pictures.ipynb")
        page.run_all(seconds=500)
        for name in names:
            explorer = page.explorer(SHOWN[name][0])
            page.until(explorer, lambda text: "working" not in text and len(text) > 80, seconds=120)
            explorer.scroll_into_view_if_needed()
            page.page.wait_for_timeout(1_500)  # points that glide to their places
            picture = Image.open(io.BytesIO(explorer.screenshot())).convert("RGB")
            picture.quantize(192).save(folder / f"{name}.png", optimize=True)
        browser.close()


if __name__ == "__main__":
    main()
