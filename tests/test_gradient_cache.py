"""A large batch in chunks: the same loss and gradients, the same random numbers, less memory, and clear refusals."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.modules.batchnorm import _BatchNorm

from medvlp_kit.budget import budget
from medvlp_kit.cli import main
from medvlp_kit.errors import KitError
from medvlp_kit.model import ForwardPass
from medvlp_kit.objectives import Objective, ObjectiveOutput, WeightedSum
from medvlp_kit.objectives.contrastive import InfoNCE, SigmoidContrastive, SoftTargetContrastive
from medvlp_kit.objectives.gradient_cache import chunked_output
from medvlp_kit.objectives.local import WordRegion
from medvlp_kit.objectives.matching import ImageTextMatching
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.pretrain import pretrain
from medvlp_kit.recipes import Recipe, build, get
from medvlp_kit.study import Batch, Tokens

TINY = budget("tiny").but(image_model="kit_vit", train_studies=48, batch_size=16)
DROPPING = {"image_options": {"dropout": 0.3}, "text_options": {"dropout": 0.3, "pooling": "max"}}


def batch(count=10, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 60, (count, 9), generator=generator)
    mask = torch.arange(9)[None] < torch.randint(3, 10, (count, 1), generator=generator)
    images = torch.rand(count, 1, 32, 32, generator=generator, dtype=dtype)
    labels = torch.randint(0, 2, (count, 2), generator=generator).float()
    return Batch(tuple(range(count)), {"frontal": images}, {"report": Tokens(ids * mask, mask)}, ("",) * count, labels)


def model(image_model="kit_vit", dtype=torch.float64, **options):
    torch.manual_seed(0)
    recipe = Recipe(**{**vars(get("clip")), **options})
    return build(recipe, budget=TINY.but(image_model=image_model), vocabulary_size=60).model.to(dtype)


def gradients(loss, *modules):
    loss.backward()
    return {f"{k} {name}": p.grad for k, m in enumerate(modules) for name, p in m.named_parameters() if p.grad is not None}


OBJECTIVES = {
    "info nce": InfoNCE,
    "sigmoid": lambda: SigmoidContrastive(same="category", chunk=4),
    "soft": lambda: SoftTargetContrastive("labels"),
    "hybrid": lambda: WeightedSum({"one": InfoNCE(), "two": SoftTargetContrastive("category")}, watch=1),
}


class Wide(Objective):
    """InfoNCE without the cast to float32, so that equality can be asked for to the last digits."""

    def forward(self, forward_pass):
        logits = forward_pass.image_embedding @ forward_pass.text_embedding.T / forward_pass.model.temperature()
        return ObjectiveOutput(-(logits.log_softmax(dim=1).diagonal().mean() + logits.log_softmax(dim=0).diagonal().mean()) / 2)


@pytest.mark.parametrize("chunk", [1, 3, 10, 64])
def test_loss_and_gradients_are_those_of_the_whole_batch(chunk):
    whole, pieces = model(), model()
    expected = Wide()(ForwardPass(whole, batch())).loss
    found = chunked_output(Wide(), pieces, batch(), chunk=chunk).loss
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    ours, theirs = gradients(found, pieces), gradients(expected, whole)
    assert ours.keys() == theirs.keys() and len(ours) > 20 and "0 temperature.log_scale" in ours
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert max(gradient.abs().max() for gradient in theirs.values()) > 1e-3


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_that_reads_embeddings_alone_can_be_cut(name):
    found = []
    for chunk in (None, 4):
        torch.manual_seed(1)
        both = model(dtype=torch.float32), OBJECTIVES[name]()
        given = batch(dtype=torch.float32)
        output = both[1](ForwardPass(both[0], given)) if chunk is None else chunked_output(both[1], both[0], given, chunk=chunk)
        found.append((output.loss.detach(), output.logs, gradients(output.loss, *both)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)


def by_hand(model, given, chunk):
    """The chunks, in the order in which they draw random numbers, with everything kept."""
    images = [model.embed_image(model.encode_image(part)) for part in given.images.split(chunk)]
    parts = zip(given.tokens.ids.split(chunk), given.tokens.mask.split(chunk))
    texts = [model.embed_text(model.encode_text(Tokens(ids, mask))) for ids, mask in parts]
    forward_pass = ForwardPass(model, given)
    forward_pass.cached("image embedding", lambda: torch.cat(images))
    forward_pass.cached("text embedding", lambda: torch.cat(texts))
    return Wide()(forward_pass).loss


def test_dropout_draws_the_same_numbers_the_second_time():
    found = []
    for cut in (True, False, False):
        whole = model(**DROPPING).train()
        torch.manual_seed(len(found) // 2)  # the third draws others
        loss = chunked_output(Wide(), whole, batch(), chunk=4).loss if cut else by_hand(whole, batch(), 4)
        after = torch.rand(3)
        found.append((loss.detach(), after, gradients(loss, whole)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-10)
    assert (found[2][0] - found[1][0]).abs() > 1e-4


def test_batch_norm_sees_chunks_and_counts_each_once():
    found = []
    for cut in (True, False):
        whole = model("resnet10t").train()
        loss = chunked_output(Wide(), whole, batch(), chunk=5).loss if cut else by_hand(whole, batch(), 5)
        found.append((loss.detach(), gradients(loss, whole), dict(whole.named_buffers())))
        norms = [part for part in whole.modules() if isinstance(part, _BatchNorm)]
        assert norms and all(norm.num_batches_tracked == 2 and norm.momentum == 0.1 for norm in norms)
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-10)


def test_what_is_kept_for_the_second_time_does_not_grow_like_activations():
    def kept(count, chunk):
        sizes = []
        both = model(), batch(count)
        note = lambda tensor: sizes.append(tensor.numel()) or tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            Wide()(ForwardPass(*both)) if chunk is None else chunked_output(Wide(), *both, chunk=chunk)
        return sum(sizes)

    assert kept(32, None) > 1.8 * kept(16, None)  # not twice: weights are kept too
    assert kept(32, 4) < kept(32, None) / 20


class Direct(Objective):
    """Goes to the encoder itself, past the forward pass."""

    def forward(self, forward_pass):
        return ObjectiveOutput(forward_pass.model.image_encoder(forward_pass.batch.images).pooled.mean())


class Fusing(Objective):
    def forward(self, forward_pass):
        return ObjectiveOutput(forward_pass.fused.pooled.mean())


READERS = {
    "image": WordRegion, "matching": lambda: ImageTextMatching(32), "direct": Direct, "fused": Fusing,
    "hybrid": lambda: WeightedSum({"one": InfoNCE(), "two": Direct()}),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_an_objective_that_reads_more_is_refused_in_one_line_and_leaves_nothing_behind(name, tmp_path):
    changes = {"objective": lambda model: READERS[name](), "model_options": {"local_projection": True}}
    recipe = Recipe(**{**vars(get("clip")), **changes})
    with pytest.raises(KitError, match="leave out the chunk") as caught:
        pretrain(recipe, Phantoms(16, image_size=32), budget=TINY, chunk=4, out=tmp_path / "run", progress=False)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()
    both = model(dtype=torch.float32)
    assert torch.isfinite(Wide()(ForwardPass(both, batch(dtype=torch.float32))).loss)  # encoders are open again


def test_chunks_below_one_are_refused(tmp_path):
    with pytest.raises(KitError, match="at least one"):
        pretrain("clip", Phantoms(16, image_size=32), budget=TINY, chunk=0, out=tmp_path / "run")
    with pytest.raises(KitError, match="at least one"):
        chunked_output(InfoNCE(), model(), batch(), chunk=0)


class Interrupted(Exception):
    pass


def test_a_run_in_chunks_follows_the_whole_one_and_resumes_to_the_same_bits(tmp_path):
    phantoms, options = Phantoms(48, image_size=32), dict(budget=TINY.but(epochs=2), progress=False, checkpoint_every=2)

    def stop(row):
        if row["step"] == 5:
            raise Interrupted

    whole = pretrain("clip", phantoms, **options)
    pieces = pretrain("clip", phantoms, chunk=5, out=tmp_path / "pieces", **options)
    losses = [torch.tensor(run.history["loss"].tolist()) for run in (whole, pieces)]
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0.02)  # some machines train in bf16
    assert json.loads((tmp_path / "pieces" / "run.json").read_text())["chunk"] == 5

    resumed = dict(options, out=tmp_path / "resumed")
    with pytest.raises(Interrupted):
        pretrain("clip", phantoms, chunk=5, on_log=stop, **resumed)
    with pytest.raises(KitError, match="another chunk"):
        pretrain("clip", phantoms, resume=True, **resumed)
    pretrain("clip", phantoms, chunk=5, resume=True, **resumed)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("pieces", "resumed"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_the_command_line_takes_a_chunk(tmp_path, capsys):
    folder = tmp_path / "run"
    with pytest.raises(SystemExit) as done:
        main(["pretrain", "-r", "clip", "-b", "tiny", "--epochs", "1", "--train-studies", "32", "--chunk", "8", "-o", str(folder)])
    assert done.value.code == 0 and "2 steps" in capsys.readouterr().out
    assert json.loads((folder / "run.json").read_text())["chunk"] == 8
