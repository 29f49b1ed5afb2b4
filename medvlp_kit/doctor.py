"""`medvlp doctor`: what this machine has, what is missing, and how to mend it."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

OK, NOTE, MISSING = "ok", "note", "missing"
ROOM = 2.0  # GB free for runs and checkpoints


@dataclass(frozen=True)
class Line:
    """One thing looked at. `state` is ok, note (something optional is absent) or missing (mend it)."""

    state: str
    what: str
    found: str
    mend: str = ""

    def __str__(self) -> str:
        mark = {OK: "  ", NOTE: "- ", MISSING: "! "}[self.state]
        return f"{mark}{self.what:<22}{self.found}" + (f"\n    mend: {self.mend}" if self.mend else "")


def examine(say: Callable[[str], None] = print) -> bool:
    """Say what was found, line by line. Returns whether nothing is missing."""
    lines = []
    for check in CHECKS:
        for line in check():
            lines.append(line)
            say(str(line))
    missing = sum(line.state == MISSING for line in lines)
    say("\nNothing is missing." if not missing else f"\n{missing} to mend, see above.")
    return not missing


def python() -> Iterator[Line]:
    """The interpreter, and whether it is one of the kit's own."""
    version = ".".join(map(str, sys.version_info[:3]))
    fine = sys.version_info >= (3, 10)
    yield Line(OK if fine else MISSING, "python", version, "" if fine else "install Python 3.10 or newer")
    inside = sys.prefix != sys.base_prefix or "CONDA_PREFIX" in os.environ
    yield Line(
        OK if inside else NOTE, "environment", Path(sys.prefix).name,
        "" if inside else "use the environment that `make lab` creates, so that versions fit together",
    )  # fmt: skip


def packages() -> Iterator[Line]:
    """Every package the kit asks for, against its floor."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        wanted = metadata.requires("medvlp-kit") or []
    except metadata.PackageNotFoundError:
        yield Line(MISSING, "medvlp-kit", "not installed", "run: pip install -c constraints.txt -e .")
        return
    for text in wanted:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        yield package(requirement.name, str(requirement.specifier))


def package(name: str, specifier: str) -> Line:
    """One installed package against a version specifier such as ">=2.6"."""
    from packaging.specifiers import SpecifierSet

    mend = f"run: pip install -c constraints.txt '{name}{specifier}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Line(MISSING, name, "not installed", mend)
    if not SpecifierSet(specifier).contains(version, prereleases=True):
        return Line(MISSING, name, f"{version}, needs {specifier}", mend)
    return Line(OK, name, version)


def widgets() -> Iterator[Line]:
    """JupyterLab draws ipywidgets 8 with jupyterlab_widgets 3; another pairing shows text instead of widgets."""
    try:
        kernel, page = metadata.version("ipywidgets"), metadata.version("jupyterlab_widgets")
    except metadata.PackageNotFoundError as error:
        yield Line(MISSING, "widgets in JupyterLab", f"{error.name} is not installed", "run: pip install ipywidgets")
        return
    fits = paired(kernel, page)
    found = f"ipywidgets {kernel} with jupyterlab_widgets {page}"
    mend = "" if fits else "run: pip install --upgrade ipywidgets jupyterlab_widgets, then restart JupyterLab"
    yield Line(OK if fits else MISSING, "widgets in JupyterLab", found, mend)


def paired(ipywidgets: str, jupyterlab_widgets: str) -> bool:
    """Whether the kernel's and the page's half of the widgets belong together: 8 with 3, 7 with 1."""
    major, other = (int(re.match(r"\d+", version).group()) for version in (ipywidgets, jupyterlab_widgets))
    return {8: 3, 7: 1}.get(major) == other


def device() -> Iterator[Line]:
    """What torch computes on, and whether torchvision belongs to it."""
    try:
        import torch
    except Exception as error:  # a broken installation raises many kinds
        reason = (str(error).splitlines() or [""])[0]
        mend = "run: pip install --force-reinstall torch torchvision"
        yield Line(MISSING, "torch", f"does not import ({reason})", mend)
        return
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        yield Line(OK, "device", f"cuda: {properties.name}, {properties.total_memory / 1e9:.0f} GB")
    elif torch.backends.mps.is_available():
        yield Line(OK, "device", "mps (Apple GPU)")
    else:
        yield Line(OK, "device", "cpu (enough for the tiny and laptop budgets)")
    try:
        import timm  # noqa: F401  (fails when torchvision was built for another torch)
        import torchvision  # noqa: F401
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        mend = "install torch and torchvision from the same place: pip install --force-reinstall torch torchvision"
        yield Line(MISSING, "torchvision with torch", reason, mend)


def machine() -> Iterator[Line]:
    """Cores, memory and disk."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    slow = "" if cores >= 2 else "the stated times are for two cores; expect about twice as long"
    yield Line(OK if cores >= 2 else NOTE, "cores", str(cores), slow)
    try:
        import psutil

        memory = psutil.virtual_memory().total / 1e9
        small = "" if memory >= 4 else "close other programs; the laptop budget needs about 2 GB"
        yield Line(OK if memory >= 4 else NOTE, "memory", f"{memory:.0f} GB", small)
    except ImportError:
        pass
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    full = "" if free >= ROOM else f"free {ROOM:g} GB, or run in a folder on another disk"
    yield Line(OK if free >= ROOM else MISSING, "disk", f"{free:.0f} GB free here", full)


def find_chromium() -> str | None:
    """The path of a browser of the Chromium family: MEDVLP_CHROMIUM, else the first on the PATH."""
    names = (os.environ.get("MEDVLP_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome", "chrome", "msedge")
    return next((path for path in map(shutil.which, filter(None, names)) if path), None)


def browser() -> Iterator[Line]:
    """A browser for the tests that click widgets."""
    found = find_chromium()
    mend = "" if found else "only the browser tests need it: install chromium, say with apt-get install chromium"
    yield Line(OK if found else NOTE, "chromium", found or "none", mend)


def data() -> Iterator[Line]:
    """The folder of real studies."""
    folder = os.environ.get("MEDVLP_DATA", "")
    if not folder:
        yield Line(NOTE, "MEDVLP_DATA", "not set", "only real studies need it: set it to the folder that holds them")
    elif not Path(folder).is_dir():
        yield Line(MISSING, "MEDVLP_DATA", f"{folder} is no folder", "set it to the folder of data sets, or unset it")
    else:
        yield Line(OK, "MEDVLP_DATA", folder)


CHECKS: tuple[Callable[[], Iterator[Line]], ...] = (python, packages, widgets, device, machine, browser, data)
