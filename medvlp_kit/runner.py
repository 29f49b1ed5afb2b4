"""`run`: the one way a lesson is executed, by people and by tests (papermill underneath).

Parameters are checked before anything starts; every cell has a time limit; the kernel is the running interpreter and
has no network; what was computed is kept whatever happens; and an audit looks at the result.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import notebook as documents
from .budget import budget as find_budget
from .errors import KitError
from .runner_engine import Watch, kernel_environment, register_engine

if TYPE_CHECKING:
    from nbformat import NotebookNode

    from .audit import Fault

PACKAGES = ("medvlp-kit", "torch", "transformers", "timm", "ipywidgets", "matplotlib")


@dataclass(frozen=True)
class Failure:
    """Why a run stopped early."""

    kind: str  # error | timeout | kernel died
    cell: int  # 1 is the first cell of the executed copy
    source: str
    message: str

    def __str__(self) -> str:
        source = "\n".join(f"    {line}" for line in self.source.strip().splitlines())
        return f"cell {self.cell}: {self.kind}: {self.message}\n{source}"


@dataclass(frozen=True)
class RunResult:
    """One executed notebook: where it is, what it took, and what is wrong with it."""

    notebook: Path  # the executed copy
    html: Path | None
    log: Path
    budget: str
    seconds: float
    peak_memory_mb: int
    failure: Failure | None = None
    findings: tuple[Fault, ...] = ()
    tables: tuple[str, ...] = field(default=(), repr=False)  # outputs of the cells tagged `result`, as text

    @property
    def ok(self) -> bool:
        return self.failure is None and not self.findings

    @property
    def problems(self) -> list[str]:
        first = [str(self.failure)] if self.failure else []
        return first + [str(finding) for finding in self.findings]

    def check(self) -> RunResult:
        """Itself when all is well; AssertionError with every problem otherwise."""
        assert self.ok, "\n".join([f"{self.notebook.name} did not pass:", *self.problems])
        return self


def run(
    notebook: str | os.PathLike,
    *,
    budget: str = "laptop",
    parameters: Mapping[str, Any] | None = None,
    out: str | os.PathLike = "runs",
    html: bool = True,
    timeout: float | None = None,
    in_place: bool = False,
    progress: bool = False,
    slack: float = 1.0,
) -> RunResult:
    """Execute a lesson and audit the result.

    notebook:   the .ipynb file; it runs in its own folder, as in JupyterLab
    budget:     injected as the parameter `budget` and set as MEDVLP_BUDGET
    parameters: further values for the notebook's parameters cell
    out:        folder for the executed copy, its HTML page and its log, named after notebook and budget
    timeout:    seconds a cell may take; None takes the budget's `cell_seconds`
    in_place:   when run and audit pass, also write the outputs into the notebook itself (MEDVLP_DATA is then hidden
                from it, so that no real study can enter a committed file)
    progress:   print one line a cell
    slack:      factor on the stated time, for machines that do other work meanwhile

    A failing cell does not raise: see `RunResult.failure`, or call `.check()`. KitError when the notebook, a parameter
    or the budget is not as it should be; then nothing has run.
    """
    import papermill

    from .audit import audit

    path = Path(notebook).resolve()
    document = documents.read(path)
    size = find_budget(budget)
    defaults = documents.parameters(document, name=path.name)
    chosen = dict(parameters or {})
    if in_place and chosen:
        raise KitError("in_place keeps the outputs of the parameters as written: change them in the notebook instead")
    chosen = {"budget": size.name, **documents.check_parameters(chosen, defaults)}
    if "budget" not in defaults:
        raise KitError(f"the parameters cell of {path.name} has no 'budget': add the line budget = None")
    if chosen["budget"] != size.name:
        raise KitError(f"two budgets, {chosen['budget']!r} and {size.name!r}: give it once, as budget=")

    out = Path(out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"{path.stem}-{size.name}.ipynb"
    log = target.with_suffix(".log")
    failure = None
    with tempfile.TemporaryDirectory(prefix="medvlp-") as scratch, open(log, "w", encoding="utf-8") as stream:
        record = Path(scratch) / "network"
        watch = Watch(
            seconds=float(timeout or size.cell_seconds),
            folder=path.parent,
            environment=kernel_environment(size.name, Path(scratch), record, private=in_place),
            log=stream,
            echo=progress,
        )
        started = time.perf_counter()
        try:
            papermill.execute_notebook(
                str(path), str(target), parameters=chosen, engine_name=register_engine(), kernel_name="python3",
                language="python", progress_bar=False, watch=watch,
            )  # fmt: skip
        except Exception as error:
            if watch.cell is None:  # nothing ran yet: a fault of the machine, not of the lesson
                raise KitError(f"the kernel for {path.name} did not start ({error}): run medvlp doctor") from error
            failure = _failure(error, watch)
        seconds = time.perf_counter() - started
        network = record.read_text(encoding="utf-8").split() if record.is_file() else []

    executed = documents.tidy(documents.read(target))
    if failure is not None:
        _mark(executed, failure)
    executed.metadata["medvlp"] = {
        "budget": size.name,
        "code_hash": documents.code_hash(document),
        "packages": _versions(),
        "peak_memory_mb": watch.peak_memory_mb,
        "seconds": round(seconds, 1),
    }
    documents.write(executed, target)
    findings = audit(executed, budget=size.name, seconds=seconds, slack=slack, network=network)
    if failure is not None:  # the failure says it better
        findings = [finding for finding in findings if finding.rule != "error output"]
    page = target.with_suffix(".html") if html else None
    if page is not None:
        from .webpage import write_page

        write_page(executed, page, title=path.stem)
    result = RunResult(
        target, page, log, size.name, seconds, watch.peak_memory_mb, failure, tuple(findings), _tables(executed)
    )
    if in_place and result.ok:
        documents.write(documents.publishable(executed), path)
    return result


def _failure(error: Exception, watch: Watch) -> Failure:
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    if isinstance(error, CellTimeoutError):
        kind, message = "timeout", f"the cell was stopped after {watch.seconds:g} s"
    elif isinstance(error, DeadKernelError):
        kind, message = "kernel died", "the kernel's process ended (out of memory, or a crash in native code)"
    else:
        name = getattr(error, "ename", type(error).__name__)
        kind, message = "error", f"{name}: {getattr(error, 'evalue', error)}"
    return Failure(kind, watch.cell or 0, watch.source, message)


def _mark(document: NotebookNode, failure: Failure) -> None:
    """Leave the reason in the executed copy, where the reader looks."""
    from nbformat.v4 import new_output

    cell = document.cells[failure.cell - 1]
    if not any(output.output_type == "error" for output in cell.outputs):
        lines = [f"{failure.kind}: {failure.message}"]
        cell.outputs.append(new_output("error", ename=failure.kind, evalue=failure.message, traceback=lines))


def _tables(document: NotebookNode) -> tuple[str, ...]:
    texts = []
    for cell in documents.code_cells(document):
        if "result" not in documents.tags(cell):
            continue
        for output in cell.outputs:
            text = output.text if output.output_type == "stream" else output.get("data", {}).get("text/plain", "")
            if text.strip():
                texts.append(text.strip("\n"))
    return tuple(texts)


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
