"""The pretraining loop, on Hugging Face accelerate: one code path for CPU, CUDA, MPS and several processes.

    medvlp pretrain --recipe convirt --data phantoms --out runs/first
    accelerate launch -m medvlp_kit.pretrain --recipe convirt --data phantoms --out runs/first     # GPUs
    torchrun --nproc_per_node 2 -m medvlp_kit.pretrain --recipe convirt --out runs/first           # CPU processes

Everything random at step k is a function of (seed, k), so a run that was killed and resumed ends, on a CPU, with the
same bits as one that was not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from . import checkpoint, recipes, run_folder
from .budget import Budget
from .budget import budget as named_budget
from .collate import collate
from .errors import KitError, unknown
from .model import ForwardPass, VisionLanguageModel
from .objectives import Objective, ObjectiveOutput
from .objectives.gradient_cache import chunked_output
from .objectives.vocabulary import read_tokenizer
from .progress import Progress
from .recipes import Recipe
from .run_folder import Run, load_run
from .schedule import build_optimizer, indices_of_step, learning_rate
from .study import Batch, Collection
from .text import ReportTokenizer
from .throughput import count_step_flops, peak_flops

if TYPE_CHECKING:
    from .augment.pairs import Policy

__all__ = ["Pretraining", "pretrain", "load_run", "Run"]

TOKENIZER_REPORTS = 4_000  # enough to fix a small vocabulary; more only costs time
PRECISIONS = ("auto", "no", "bf16")


class Pretraining(nn.Module):
    """Model and objective as one module, so that data parallelism sees one forward call.

    chunk: encode so many studies at a time (see `objectives.gradient_cache`); None: all at once.
    """

    def __init__(self, model: VisionLanguageModel, objective: Objective, *, chunk: int | None = None):
        super().__init__()
        self.model, self.objective, self.chunk = model, objective, chunk

    def forward(self, batch: Batch) -> ObjectiveOutput:
        if self.chunk is not None:
            return chunked_output(self.objective, self.model, batch, chunk=self.chunk)
        return self.objective(ForwardPass(self.model, batch))


class GlobalBatches(Dataset):
    """Batch `step` of the run, cut to this process's share. A pure function of the step."""

    def __init__(self, collection, tokenizer, recipe: Recipe, budget: Budget, *, seed: int, rank: int, processes: int,
                 augment: Policy | None = None):  # fmt: skip
        self.collection, self.tokenizer, self.recipe, self.budget = collection, tokenizer, recipe, budget
        self.seed, self.rank, self.processes, self.augment = seed, rank, processes, augment

    def __getitem__(self, step: int) -> Batch:
        studies, size = len(self.collection), self.budget.batch_size
        share = size // self.processes
        chosen = indices_of_step(step, studies=studies, batch_size=size, seed=self.seed)
        return collate(
            self.collection,
            chosen[self.rank * share : (self.rank + 1) * share],
            tokenizer=self.tokenizer,
            image_size=self.budget.image_size,
            text_length=min(self.budget.text_length, self.recipe.text_length or self.budget.text_length),
            views=self.recipe.views,
            texts=self.recipe.texts,
            seed=self.seed + step // (studies // size),  # another sentence each epoch
            findings=self.recipe.findings,
            augment=self.augment,
        )


def has_bf16() -> bool:
    """Whether the device that will train computes in bf16 itself, instead of imitating it more slowly."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    if torch.backends.mps.is_available():
        return False
    return getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()  # no public question exists


def _build_accelerator(precision: str):
    from accelerate import Accelerator, DistributedDataParallelKwargs

    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    mixed = ("bf16" if has_bf16() else "no") if precision == "auto" else precision
    # a recipe may leave parameters unused in one step (a fusion module under a contrastive objective)
    return Accelerator(mixed_precision=mixed, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])


def _fit_budget(budget: Budget, collection: Collection, processes: int) -> Budget:
    """The budget with its batch cut to a small collection, and checked against the number of processes."""
    if len(collection) < 2 * processes:
        raise KitError(f"{collection.name} has {len(collection)} studies: contrast needs at least {2 * processes} to train on")
    size = min(budget.batch_size, len(collection))
    if size % processes:
        raise KitError(f"a batch of {size} does not split over {processes} processes: choose a multiple of {processes}")
    return budget.but(batch_size=size)


def _same_run(folder: Path, wanted: dict) -> None:
    """Refuse to resume a run that was started with other settings."""
    found = run_folder.read_description(folder)
    for key in ("recipe", "budget", "seed", "data", "channels", "chunk", "augment"):
        there = found.get(key)
        if there != json.loads(json.dumps(wanted.get(key))):
            raise KitError(
                f"{folder} holds a run with another {key} ({str(there)[:80]!r}): resume with the same or choose another --out"
            )


def pretrain(
    recipe: str | Recipe,
    collection: Collection,
    *,
    budget: str | Budget | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    resume: bool = False,
    tokenizer: ReportTokenizer | None = None,
    data: dict[str, Any] | None = None,
    checkpoint_every: int = 50,
    log_every: int | None = None,
    precision: str = "auto",
    compile: bool = False,
    workers: int = 0,
    chunk: int | None = None,
    augment: Policy | None = None,
    max_gradient_norm: float = 1.0,
    progress: bool = True,
    on_log: Callable[[dict[str, float]], None] | None = None,
    probe: Callable[[int, VisionLanguageModel], Mapping[str, float] | None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Run:
    """Pretrain `recipe` on `collection` for `budget.steps` steps and return the `Run`.

    out:     folder of the run; None keeps it in memory. A folder that already holds a run needs `resume=True`.
    data:    how to find the collection again, kept in run.json: {"name": ..., "root": ...}
    on_log:  called with every row of the history while training
    probe:   called with (step, model in evaluation mode) before every row; the numbers it returns join the row
    should_stop: asked after every step; once it says yes, the run ends and what it has learned is kept: the `Run` says how
             many `steps` it took, and a folder can be continued with `resume=True`. On one process.
    workers: background readers; leave 0 in notebooks
    chunk:   encode so many studies at a time: a batch of thousands in the memory of a few, for one more forward pass
             (`objectives.gradient_cache`); for objectives that read nothing but the two embeddings. On each process.
    augment: a policy of `medvlp_kit.augment` for the training pairs, such as CoupledFlip(); kept in run.json
    Errors: a non-finite loss stops the run with the last good checkpoint in place.
    """
    recipe, sizes = recipes.get(recipe), named_budget(budget)
    if chunk is not None and chunk < 1:
        raise KitError(f"chunk is {chunk}: take at least one study at a time, or leave it out")
    accelerator = _build_accelerator(precision)
    device, main = accelerator.device, accelerator.is_main_process
    sizes = _fit_budget(sizes, collection, accelerator.num_processes)
    folder = Path(out) if out is not None else None
    if should_stop is not None and accelerator.num_processes > 1:
        raise KitError("should_stop works on one process: with several, stop the launcher, and continue with resume")
    if resume and folder is None:
        raise KitError("resume needs the folder of the run: give out=")
    steps, start, rows, saved = sizes.steps, 0, [], None

    started = folder is not None and (folder / run_folder.DESCRIPTION).is_file()
    if started and not resume:
        raise KitError(f"{folder} already holds a run: add --resume to continue it, or choose another --out")
    accelerator.wait_for_everyone()  # all have looked before the main process writes
    if started and (folder / run_folder.TOKENIZER).is_file():
        tokenizer = ReportTokenizer.load(folder / run_folder.TOKENIZER)
    elif tokenizer is None:
        texts = [collection.report(i).text for i in range(min(len(collection), TOKENIZER_REPORTS))]
        tokenizer = ReportTokenizer.train(texts, vocabulary_size=sizes.vocabulary_size)
    description = run_folder.describe(
        recipe,
        sizes,
        seed=seed,
        data=data or {"name": collection.name},
        vocabulary_size=tokenizer.vocabulary_size,
        channels=collection.channels,
    ) | {"chunk": chunk}
    if augment is not None:
        description["augment"] = repr(augment)
    if started:
        _same_run(folder, description)
        if run_folder.read_description(folder)["finished"]:
            return load_run(folder, device=device)
        if (folder / run_folder.TRAINING).is_file():
            saved, metadata = checkpoint.load_tensors(folder / run_folder.TRAINING)
            start, rows = metadata["step"], metadata["history"]

    torch.manual_seed(seed)
    built = recipes.build(recipe, budget=sizes, vocabulary_size=tokenizer.vocabulary_size, channels=collection.channels)
    read_tokenizer(built.objective, tokenizer)
    whole = Pretraining(built.model, built.objective, chunk=chunk)
    if accelerator.num_processes > 1 and device.type == "cuda":
        whole = nn.SyncBatchNorm.convert_sync_batchnorm(whole)
    optimizer = build_optimizer(whole)
    if saved is not None:
        weights = {name: tensor for name, tensor in saved.items() if not name.startswith("optimizer.")}
        checkpoint.load_weights(whole, weights, source=str(folder / run_folder.TRAINING))
    module, prepared = accelerator.prepare(whole, optimizer)
    if saved is not None:
        checkpoint.unpack_optimizer(whole, optimizer, saved)
    ranks = dict(rank=accelerator.process_index, processes=accelerator.num_processes, augment=augment)
    if chunk is not None:  # refuse what cannot be done in chunks before anything is written
        few = sizes.but(batch_size=2 * accelerator.num_processes)
        with torch.no_grad():
            whole.eval()(GlobalBatches(collection, tokenizer, recipe, few, seed=seed, **ranks)[0].to(device))
    if not started and folder is not None and main:
        tokenizer.save(folder / run_folder.TOKENIZER)
        run_folder.write_description(folder, description, finished=False, steps=steps)
    if compile:  # in place: names in the checkpoint stay as they are
        built.model.image_encoder.compile()
        built.model.text_encoder.compile()

    batches = GlobalBatches(collection, tokenizer, recipe, sizes, seed=seed, **ranks)
    loader = DataLoader(
        batches, sampler=range(start, steps), batch_size=None, collate_fn=_as_is, num_workers=workers,
        persistent_workers=workers > 0,
    )  # fmt: skip
    log_every = log_every or max(1, min(10, steps // 20))
    precision_type = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    flops = peak = None

    def save(step: int) -> None:
        if folder is not None and main:
            tensors = whole.state_dict() | checkpoint.pack_optimizer(whole, optimizer)
            checkpoint.save_tensors(folder / run_folder.TRAINING, tensors, metadata={"step": step, "history": rows})
            checkpoint.write_text(folder / run_folder.HISTORY, _frame(rows).to_csv(index=False))

    done, finite, clock, clock_step = start, torch.ones((), device=device, dtype=torch.bool), time.perf_counter(), start
    waited, reader = 0.0, iter(loader)
    module.train()
    try:
        with Progress(steps, f"pretraining {recipe.title}", shown=progress and main) as bar:
            for step in range(start, steps):
                before = time.perf_counter()
                batch = next(reader)
                waited += time.perf_counter() - before
                batch = batch.to(device)
                if flops is None:
                    flops = count_step_flops(whole, batch) * accelerator.num_processes
                    peak = peak_flops(str(device), precision_type) * accelerator.num_processes
                    clock, clock_step, waited = time.perf_counter(), step, 0.0
                # dropout and masks of step k are a function of (seed, k): nothing random needs saving
                torch.manual_seed((seed * 1_000_003 + step) * 4_099 + accelerator.process_index)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, sizes, steps=steps)
                output = module(batch)
                accelerator.backward(output.loss)
                norm = accelerator.clip_grad_norm_(module.parameters(), max_gradient_norm)
                finite &= torch.isfinite(output.loss.detach()) & torch.isfinite(norm)
                last = step + 1 == steps
                # asking the device costs a wait, so a GPU is asked only before something is logged or saved
                ask = device.type == "cpu" or last or (step + 1) % log_every == 0 or (step + 1) % checkpoint_every == 0
                if ask and not finite.item():
                    raise KitError(_non_finite(step, sizes, rows, folder))
                prepared.step()
                prepared.zero_grad()
                done = step + 1
                if last or done % log_every == 0:
                    loss = output.loss.item()  # waits for the device, so the clock is honest
                    seconds = (time.perf_counter() - clock) / (done - clock_step)
                    row = {"step": done, "loss": loss, "learning_rate": optimizer.param_groups[0]["lr"]}
                    row |= {name: float(value) for name, value in output.logs.items()}
                    row |= {"gradient_norm": float(norm), "pairs_per_second": sizes.batch_size / seconds}
                    row["mfu"] = flops / seconds / peak
                    row["waiting"] = waited / (seconds * (done - clock_step))  # share of the time, for the next batch
                    if probe is not None:
                        built.model.eval()
                        with torch.no_grad():
                            row |= {name: float(value) for name, value in (probe(done, built.model) or {}).items()}
                        module.train()
                    rows.append(row)
                    clock, clock_step, waited = time.perf_counter(), done, 0.0
                    if on_log is not None and main:
                        on_log(row)
                if rows:
                    bar.update(done, _progress_text(rows[-1]))
                if done % checkpoint_every == 0 and not last:
                    before = time.perf_counter()
                    save(done)
                    clock += time.perf_counter() - before  # saving is not training
                if should_stop is not None and not last and should_stop():
                    save(done)
                    break
    except KeyboardInterrupt:
        save(done)
        raise
    if folder is not None and main and done == steps:
        checkpoint.save_tensors(folder / run_folder.WEIGHTS, whole.state_dict(), metadata={"step": steps})
        checkpoint.write_text(folder / run_folder.HISTORY, _frame(rows).to_csv(index=False))
        run_folder.write_description(folder, description, finished=True, steps=steps)
        (folder / run_folder.TRAINING).unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return Run(
        model=built.model.eval(),
        objective=built.objective.eval(),
        tokenizer=tokenizer,
        recipe=recipe,
        budget=sizes,
        history=_frame(rows),
        data=description["data"],
        seed=seed,
        steps=done,
        folder=folder,
    )


def _as_is(batch: Batch) -> Batch:
    return batch


def _frame(rows: list[dict]):
    import pandas as pd

    return pd.DataFrame(rows)


def _progress_text(row: dict[str, float]) -> str:
    return f"loss {row['loss']:.3f}, {row['pairs_per_second']:.0f} pairs/s, MFU {100 * row['mfu']:.0f} %"


def _non_finite(step: int, budget: Budget, rows: list[dict], folder: Path | None) -> str:
    last = f"it was {rows[-1]['loss']:.3g} at step {rows[-1]['step']}" if rows else "no step was logged before"
    kept = f"the last good checkpoint is in {folder}" if folder is not None else "nothing was saved (no out=)"
    return (
        f"the loss is not finite by step {step + 1} ({last}): lower the learning rate (now {budget.learning_rate:g}), "
        f"raise the temperature or look for broken images; {kept}"
    )


if __name__ == "__main__":
    import sys

    from medvlp_kit.cli import main

    main(["pretrain", *sys.argv[1:]])
