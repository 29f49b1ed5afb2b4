"""How a run talks to its kernel: a papermill engine that starts the kit's kernel, keeps time, and measures memory."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import notebook as documents
from .kernel import RECORD

GRACE = 30.0  # seconds beyond a cell's limit before the wait for its answer is given up as well


@dataclass
class Watch:
    """What the client needs to know, and what it learns, during one run."""

    seconds: float
    folder: Path
    environment: dict[str, str]
    log: Any
    echo: bool
    cell: int | None = None
    source: str = ""
    peak_memory_mb: int = 0

    def say(self, text: str, *, end: str = "\n") -> None:
        self.log.write(text + end)
        self.log.flush()
        if self.echo:
            print(text, end=end, flush=True)


def kernel_environment(budget: str, scratch: Path, record: Path, *, private: bool) -> dict[str, str]:
    """The variables of a lesson's kernel: no hub, no start-up files of the reader's, and no real data when private."""
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    data = environment.pop("MEDVLP_DATA", "")
    if data and not private:
        environment["MEDVLP_DATA"] = os.path.abspath(data)
    return environment | {
        "MEDVLP_BUDGET": budget,
        "IPYTHONDIR": str(scratch / "ipython"),  # a reader's own start-up files must not change a lesson
        RECORD: str(record),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "PYTHONHASHSEED": "0",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def register_engine() -> str:
    """Register the papermill engine that starts our kernel and never waits without end; returns its name."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient.exceptions import CellTimeoutError
    from nbclient.util import run_sync
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import NBClientEngine, papermill_engines

    class Manager(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            argv = [sys.executable, "-m", "medvlp_kit.kernel", "-f", "{connection_file}"]
            return KernelSpec(argv=argv, display_name="medvlp", language="python")

    class Client(PapermillNotebookClient):
        watch: Watch

        def create_kernel_manager(self):
            self.km = Manager(kernel_name="python3")
            return self.km

        async def async_execute_cell(self, cell, cell_index, **options):
            watch = self.watch
            if cell.cell_type != "code" or not cell.source.strip():
                return cell
            watch.cell, watch.source = cell_index + 1, cell.source
            if documents.INJECTED in documents.tags(cell):
                return await super().async_execute_cell(cell, cell_index, **options)
            first = next(line.strip() for line in cell.source.splitlines() if line.strip())
            watch.say(f"[{cell_index + 1:>2}/{len(self.nb.cells)}] {first[:70]:<70}", end=" ")
            started = time.perf_counter()
            try:
                # nbclient's own limit quotes the cell. The outer one also ends waits inside nbclient that its limit
                # does not see (a kernel and a client can each wait for the other's word about a widget).
                answer = super().async_execute_cell(cell, cell_index, **options)
                done = await asyncio.wait_for(answer, watch.seconds + GRACE)
            except asyncio.TimeoutError as error:
                if isinstance(error, CellTimeoutError):
                    raise
                raise CellTimeoutError.error_from_timeout_and_cell("no answer", int(watch.seconds), cell) from None
            else:
                if time.perf_counter() - started >= watch.seconds:  # a lost answer that only the limit dug up
                    raise CellTimeoutError.error_from_timeout_and_cell("late", int(watch.seconds), cell)
                return done
            finally:
                watch.say(f"{time.perf_counter() - started:7.1f} s")

        execute_cell = run_sync(async_execute_cell)

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, *, watch, log_output=False, **options):
            client = Client(
                nb_man, timeout=watch.seconds, startup_timeout=120, kernel_name=kernel_name, stderr_file=watch.log,
                iopub_timeout=int(min(60, watch.seconds)) + 1, coalesce_streams=True,
            )  # fmt: skip
            client.watch = watch
            stop = threading.Event()
            meter = threading.Thread(target=_measure, args=(client, watch, stop), daemon=True)
            meter.start()
            try:
                client.execute(
                    env=watch.environment, cwd=str(watch.folder), stdout=watch.log, stderr=watch.log
                )
            finally:
                stop.set()
                meter.join()

    papermill_engines.register("medvlp", Engine)
    return "medvlp"


def _measure(client, watch: Watch, stop: threading.Event) -> None:
    """Follow the resident memory of the kernel process."""
    import psutil

    process = None
    while not stop.wait(0.1):
        try:
            if process is None:
                pid = getattr(getattr(client.km, "provisioner", None), "pid", None)
                process = psutil.Process(pid) if pid else None
            if process is not None:
                watch.peak_memory_mb = max(watch.peak_memory_mb, round(process.memory_info().rss / 1e6))
        except psutil.Error:
            process = None
