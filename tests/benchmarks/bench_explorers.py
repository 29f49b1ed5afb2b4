"""How quickly each explorer answers a change. `make bench` runs this and prints the figures; a plain test run does not."""

from __future__ import annotations

import statistics

import pytest
import torch

from medvlp_kit import explorers
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.run_folder import load_base, load_masked

BLINK = 0.15  # seconds: what feels immediate
CHANGES = {  # explorer -> (how it is made, states to go through)
    "similarity_matrix": (
        lambda run, test: explorers.similarity_matrix(run, test),
        [{"temperature": 0.02}, {"temperature": 0.5}, {"shows": "gradient"}, {"picked": "2,5"}],
    ),
    "grounding_explorer": (
        lambda run, test: explorers.grounding_explorer(run, test, study=3),
        [{"phrase": "left rib fracture"}, {"study": 5}, {"phrase": "There is a right pleural effusion."}],
    ),
    "attention_explorer": (
        lambda run, test: explorers.attention_explorer(run, test, study=3),
        [{"picked": "Pneumothorax"}, {"layer": "text: words to words, layer 2"}, {"head": "2"}, {"study": 4}],
    ),
    "masking_explorer": (
        lambda run, test: explorers.masking_explorer(load_masked(), test, study=3),
        [{"image_ratio": 0.5}, {"pattern": "one block"}, {"text_ratio": 0.3}, {"draw": 4}],
    ),
    "embedding_explorer": (
        lambda run, test: explorers.embedding_explorer(run, test),
        [{"picked": "7"}, {"picked": ",".join(map(str, range(60)))}, {"colour": "finding"}, {"pairs": True}],
    ),
    "retrieval_bench": (
        lambda run, test: explorers.retrieval_bench(run, test),
        [{"query": "right pleural effusion"}, {"query": "No pneumothorax."}, {"query": "A large heart."}],
    ),
    "prompt_bench": (
        lambda run, test: explorers.prompt_bench(run, test, finding="Pneumothorax"),
        [{"affirms": "pneumothorax"}, {"denies": "normal chest"}, {"finding": "Edema"}],
    ),
    "phantom_studio": (
        lambda run, test: explorers.phantom_studio(run),
        [{"side": "right"}, {"finding": "Pneumothorax"}, {"severity": "mild"}, {"language": "es"}],
    ),
}


@pytest.fixture(scope="module")
def run():
    return load_base()


@pytest.fixture(scope="module")
def test_studies():
    return Phantoms(300, seed=0).split("test")


@pytest.mark.parametrize("name", CHANGES)
def test_an_explorer_answers_within_a_blink(name, run, test_studies, benchmark):
    make, changes = CHANGES[name]
    explorer = make(run, test_studies)
    explorer.set(**changes[-1])  # what is made on first use is not the point
    seconds = []

    def go_through():
        for change in changes:
            explorer.set(**change)
            assert explorer.error is None, explorer.error
            seconds.append(explorer.seconds)

    benchmark.pedantic(go_through, rounds=1)
    print(f"\n{name}: first answer after {statistics.median(seconds) * 1e3:.0f} ms (median), {max(seconds) * 1e3:.0f} ms at most, "
          f"on {torch.get_num_threads()} threads")  # fmt: skip
    assert statistics.median(seconds) < BLINK
