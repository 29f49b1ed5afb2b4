"""Keep the embeddings of a small run while it learns: python assets/results/growth.py

CheXzero's recipe with small pictures and one pass, on one processor in two minutes. Unit embeddings of test studies at a
few steps go to growth.safetensors beside this file, in half precision, for the embedding explorer to replay.
"""

from pathlib import Path

import torch

from medvlp_kit.budget import budget
from medvlp_kit.checkpoint import save_tensors
from medvlp_kit.downstream.encode import encode_collection
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.pretrain import pretrain
from medvlp_kit.text import ReportTokenizer

PLACE = Path(__file__).resolve().with_suffix(".safetensors")
SEED, STUDIES, RECIPE = 0, 300, "chexzero"
STEPS = (1, 10, 20, 40, 70, 100, 150, 200)
SIZE = budget("laptop").but(image_size=32, train_studies=6_400, epochs=1)


def main() -> None:
    train, test = Phantoms(SIZE.train_studies, seed=SEED, split="train"), Phantoms(STUDIES, seed=SEED, split="test")
    tokenizer = ReportTokenizer.train([train.report(i).text for i in range(4_000)], vocabulary_size=SIZE.vocabulary_size)
    kept: dict[str, torch.Tensor] = {}

    def keep(step, model) -> None:
        if step in STEPS:
            found = encode_collection(model, tokenizer, test, budget=SIZE, text="impression")
            kept[f"image.{step}"], kept[f"text.{step}"] = found.image_embedding.half(), found.text_embedding.half()

    pretrain(RECIPE, train, budget=SIZE, seed=SEED, tokenizer=tokenizer, log_every=1, precision="no", probe=keep, progress=False)
    about = {"steps": list(STEPS), "studies": STUDIES, "seed": SEED, "recipe": RECIPE}
    save_tensors(PLACE, {name: tensor.contiguous().clone() for name, tensor in kept.items()}, metadata=about)


if __name__ == "__main__":
    main()
