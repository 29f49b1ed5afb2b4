"""The loop: it learns, it resumes to the same bits, it stops on a bad loss, and it refuses what it cannot do."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from medvlp_kit.budget import budget
from medvlp_kit.errors import KitError
from medvlp_kit.objectives import Objective, ObjectiveOutput
from medvlp_kit.objectives.contrastive import InfoNCE
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.pretrain import load_run, pretrain
from medvlp_kit.recipes import Recipe, get
from medvlp_kit.schedule import indices_of_step, learning_rate

TINY = budget("tiny").but(train_studies=64, epochs=3, batch_size=16)  # 12 steps


@pytest.fixture(scope="module")
def phantoms():
    return Phantoms(64, seed=0, image_size=TINY.image_size)


@pytest.fixture(scope="module")
def finished(phantoms, tmp_path_factory):
    """One uninterrupted run that the tests below compare with."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return pretrain("convirt", phantoms, budget=TINY, out=folder, progress=False)


def test_the_loss_starts_near_ln_b_and_falls(phantoms):
    longer = TINY.but(epochs=40, learning_rate=3e-3)
    history = pretrain("convirt", phantoms, budget=longer, progress=False).history
    assert abs(history["loss"].iloc[0] - torch.tensor(16.0).log().item()) < 0.6
    assert history["loss"].iloc[-5:].mean() < history["loss"].iloc[0] - 0.4
    assert (history["pairs_per_second"] > 0).all() and (history["mfu"] > 0).all()
    assert history["step"].iloc[-1] == longer.steps


def test_the_history_says_how_long_the_loop_waited_for_data(phantoms):
    class Slow(Phantoms):
        def images(self, *arguments, **options):
            time.sleep(0.3)
            return super().images(*arguments, **options)

    short = TINY.but(epochs=2)
    quick = pretrain("convirt", phantoms, budget=short, progress=False).history["waiting"]
    slow = pretrain("convirt", Slow(64, seed=0, image_size=32), budget=short, progress=False).history["waiting"]
    assert (quick >= 0).all() and (slow <= 1).all()
    assert slow.median() > quick.median() + 0.2


def test_a_run_comes_back_from_its_folder(finished, phantoms):
    again = load_run(finished.folder)
    assert again.steps == TINY.steps and again.recipe.name == "convirt"
    for (name, ours), theirs in zip(finished.model.state_dict().items(), again.model.state_dict().values()):
        assert torch.equal(ours, theirs), name
    assert not (finished.folder / "training.safetensors").exists()
    text = [phantoms.report(0).text]
    assert torch.equal(again.tokenizer.encode(text, length=32).ids, finished.tokenizer.encode(text, length=32).ids)


def test_resuming_a_finished_run_gives_it_back(finished, phantoms):
    again = pretrain("convirt", phantoms, budget=TINY, out=finished.folder, resume=True, progress=False)
    assert len(again.history) == len(finished.history)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("stop_at", [1, 5, 11])
def test_an_interrupted_run_resumes_to_the_same_bits(finished, phantoms, tmp_path, stop_at):
    def stop(row):
        if row["step"] == stop_at:
            raise Interrupted

    options = dict(budget=TINY, out=tmp_path / "run", progress=False, checkpoint_every=2)
    with pytest.raises(Interrupted):
        pretrain("convirt", phantoms, on_log=stop, **options)
    resumed = pretrain("convirt", phantoms, resume=True, **options)
    whole, ours = (load_file(run.folder / "model.safetensors") for run in (finished, resumed))
    assert all(torch.equal(whole[name], ours[name]) for name in whole)
    assert resumed.history["step"].tolist() == finished.history["step"].tolist()
    assert resumed.history["loss"].tolist() == finished.history["loss"].tolist()


KILLED = """
import sys
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.pretrain import pretrain
from medvlp_kit.budget import budget
import torch
torch.set_num_threads(1)
sizes = budget("tiny").but(train_studies=64, epochs=30, batch_size=16)
pretrain("convirt", Phantoms(64, seed=0, image_size=32), budget=sizes, out=sys.argv[1], checkpoint_every=3,
         resume=True, progress=False, on_log=lambda row: print(row["step"], flush=True))
"""


def test_kill_minus_nine_then_resume_gives_the_same_bits(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    start = lambda name: subprocess.Popen(  # noqa: E731
        [sys.executable, "-c", KILLED, str(tmp_path / name)], env=environment, stdout=subprocess.PIPE, text=True
    )
    whole = start("whole")
    victim = start("killed")
    kill_at = 10 + os.getpid() % 60  # a different step each time
    for line in victim.stdout:
        if int(line) >= kill_at:
            victim.send_signal(signal.SIGKILL)
            break
    victim.wait()
    assert victim.returncode == -signal.SIGKILL
    assert not json.loads((tmp_path / "killed" / "run.json").read_text())["finished"]
    assert load_run(tmp_path / "killed").steps <= 120  # what is on disk is whole
    resumed = start("killed")
    resumed.communicate(timeout=240)
    whole.communicate(timeout=240)
    assert resumed.returncode == 0 and whole.returncode == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


class TurnsBad(Objective):
    """InfoNCE that becomes infinite at its fifth training step."""

    def __init__(self):
        super().__init__()
        self.inner, self.calls = InfoNCE(), 0

    def forward(self, forward_pass):
        output = self.inner(forward_pass)
        self.calls += self.training
        return ObjectiveOutput(output.loss * (float("inf") if self.calls >= 5 else 1.0), output.logs)


def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(phantoms, tmp_path):
    bad = Recipe(**{**vars(get("convirt")), "objective": lambda model: TurnsBad()})
    with pytest.raises(KitError, match="not finite by step 5") as caught:
        pretrain(bad, phantoms, budget=TINY, out=tmp_path / "run", checkpoint_every=2, progress=False)
    assert "\n" not in str(caught.value) and str(tmp_path / "run") in str(caught.value)
    kept = load_run(tmp_path / "run")
    assert kept.steps == 4
    assert all(torch.isfinite(p).all() for p in kept.model.parameters())


def test_what_it_refuses_is_one_line(finished, phantoms, tmp_path):
    cases = [
        (dict(recipe="convrit"), "did you mean 'convirt'"),
        (dict(budget="labtop"), "did you mean 'laptop'"),
        (dict(out=finished.folder), "already holds a run"),
        (dict(out=finished.folder, resume=True, seed=1), "another seed"),
        (dict(resume=True), "resume needs the folder"),
        (dict(precision="fp8"), "unknown precision"),
        (dict(collection=phantoms.subset([0])), "1 studies"),
    ]
    for change, words in cases:
        options = dict(recipe="convirt", collection=phantoms, budget=TINY, progress=False) | change
        with pytest.raises(KitError, match=words) as caught:
            pretrain(options.pop("recipe"), options.pop("collection"), **options)
        assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == []


def test_the_schedule_warms_up_and_ends_near_zero():
    rates = [learning_rate(step, TINY.but(warmup_fraction=0.25), steps=100) for step in range(100)]
    assert rates[0] == pytest.approx(TINY.learning_rate / 25)
    assert max(rates) == rates[24] == pytest.approx(TINY.learning_rate)
    assert rates[24:] == sorted(rates[24:], reverse=True) and rates[-1] < TINY.learning_rate * 0.001


def test_each_epoch_sees_every_study_once():
    for epoch in range(2):
        seen = [i for s in range(5) for i in indices_of_step(epoch * 5 + s, studies=23, batch_size=4, seed=7)]
        assert len(set(seen)) == 20
    assert indices_of_step(0, studies=23, batch_size=4, seed=7) != indices_of_step(5, studies=23, batch_size=4, seed=7)


def test_background_readers_change_nothing(finished, phantoms):
    run = pretrain("convirt", phantoms, budget=TINY, progress=False, workers=1)
    assert run.history["loss"].tolist() == finished.history["loss"].tolist()


# probes, and stopping on request


def test_a_probe_sees_the_model_and_its_numbers_join_the_history():
    seen = []

    def probe(step, model):
        seen.append((step, model.training, torch.is_grad_enabled()))
        return {"norm of a weight": float(next(model.parameters()).norm())}

    plain = pretrain("clip", Phantoms(64), budget="tiny", log_every=2, progress=False)
    probed = pretrain("clip", Phantoms(64), budget="tiny", log_every=2, progress=False, probe=probe)
    assert [step for step, *_ in seen] == list(probed.history["step"]) and not any(mode or grad for _, mode, grad in seen)
    assert (probed.history["norm of a weight"] > 0).all()
    assert (probed.history["loss"] == plain.history["loss"]).all()  # looking on changes nothing
    assert pretrain("clip", Phantoms(64), budget="tiny", progress=False, probe=lambda step, model: None).steps == plain.steps


def test_a_run_stops_when_asked_and_can_be_continued(tmp_path):
    count = []
    whole = pretrain("clip", Phantoms(64), budget="tiny", out=tmp_path / "whole", progress=False)
    part = pretrain(
        "clip", Phantoms(64), budget="tiny", out=tmp_path / "part", progress=False,
        should_stop=lambda: count.append(1) or len(count) == 3,
    )  # fmt: skip
    assert part.steps == 3 and not (tmp_path / "part" / "model.safetensors").exists()
    on = pretrain("clip", Phantoms(64), budget="tiny", out=tmp_path / "part", progress=False, resume=True)
    assert on.steps == whole.steps
    for a, b in zip(on.model.parameters(), whole.model.parameters()):
        assert torch.equal(a, b)
    kept = pretrain("clip", Phantoms(64), budget="tiny", progress=False, should_stop=lambda: True)
    assert kept.steps == 1 and not kept.model.training
