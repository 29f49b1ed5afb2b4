"""What is wrong with an executed lesson: every rule is one small function, and `audit` runs them all.

A run that ends is not yet a run that is right. Errors hide in widget state, pictures have no words for those who cannot
see them, a path works on one machine only, a cell reaches for a network or a GPU that the reader does not have.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

from . import code_rules
from . import notebook as documents
from .course import contract

if TYPE_CHECKING:
    from nbformat import NotebookNode

SIZE_CAP = 1_000_000  # bytes of outputs in a committed notebook
SHORTEST_ALT = 20
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
DATA_ADDRESS = re.compile(r"data:[\w/+.-]+;base64,[A-Za-z0-9+/=\s]+")
ABSOLUTE = re.compile(
    r"(?<![\w.~<:/-])/(?:home|Users|root|tmp|work|mnt|media|var/folders|private/(?:var|tmp)|data|opt|scratch)\b(?=[/'\"\s)\],:]|$)"
    r"|\b[A-Z]:\\{1,2}\w|file:///\w"
)
CONTENT_NETWORK = re.compile(r"(?:https?:)?//[\w.-]*(?:\bcdn|unpkg\.com|jsdelivr|cdnjs)[\w./@-]*", re.I)


@dataclass(frozen=True)
class Fault:
    """One breach of one rule."""

    rule: str
    where: str  # "cell 7", "notebook"
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.rule}: {self.message}"


def audit(
    document: NotebookNode,
    *,
    budget: str = "laptop",
    seconds: float = 0.0,
    slack: float = 1.0,
    network: Sequence[str] = (),
) -> list[Fault]:
    """Every fault of an executed notebook; empty when it may be published.

    seconds: how long the run took, held against the minutes its header states for `budget`, times `slack`
    network: hosts that the run tried to reach (the runner's kernel records them)
    """
    faults = [fault for rule in RULES for fault in rule(document)]
    faults += time_over_stated(document, budget=budget, seconds=seconds, slack=slack)
    for host in dict.fromkeys(network):
        faults.append(Fault("network use", "notebook", f"a cell asked for {host} while it ran"))
    return faults


# ---------------------------------------------------------------- what the run left behind


def error_outputs(document: NotebookNode) -> Iterator[Fault]:
    for where, output in _outputs(document):
        if output.output_type == "error":
            yield Fault("error output", where, f"{output.ename}: {output.evalue}")


def widget_errors(document: NotebookNode) -> Iterator[Fault]:
    """A callback that raises inside an Output widget leaves its traceback here and nowhere else; an explorer, its line."""
    for model in _widget_models(document):
        for output in model.get("outputs") or ():
            if output.get("output_type") == "error":
                yield Fault("error in widget state", "notebook", f"{output.get('ename')}: {output.get('evalue')}")
        for line in re.findall(r"data-explorer-error[^>]*>([^<]*)", str(model.get("value", ""))):
            yield Fault("error in widget state", "notebook", f"an explorer says: {line}")


def alternative_text(document: NotebookNode) -> Iterator[Fault]:
    """Every picture has words for those who cannot see it, and they are not just its title."""
    rule = "alt text"
    for where, output in _outputs(document):
        data = output.get("data", {})
        if any(kind.startswith("image/") for kind in data):
            yield Fault(rule, where, "a picture without alternative text: use figures.show(fig, alt=...)")
        for problem in _picture_problems(data.get("text/html", "")):
            yield Fault(rule, where, problem)
    for where, cell in _numbered(document):
        if cell.cell_type == "markdown":
            for text, _ in re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", cell.source):
                if len(" ".join(text.split())) < SHORTEST_ALT:
                    yield Fault(rule, where, f"![{text}] says too little: at least {SHORTEST_ALT} characters")
            for problem in _picture_problems(cell.source):
                yield Fault(rule, where, problem)
    for model in _widget_models(document):
        if isinstance(model.get("value"), str):
            for problem in _picture_problems(model["value"]):
                yield Fault(rule, "widget", problem)


def absolute_paths(document: NotebookNode) -> Iterator[Fault]:
    here = {str(Path.cwd()), str(Path.home()), sys.prefix, tempfile.gettempdir()} - {"/", "", "/usr"}
    for where, text in _texts(document):
        text = DATA_ADDRESS.sub("", text)
        found = ABSOLUTE.search(text)
        known = next((path for path in sorted(here) if re.search(rf"(?<!\w){re.escape(path)}(?!\w)", text)), None)
        if found or known:
            place = text[found.start() : found.start() + 40].split("\n")[0] if found else known
            yield Fault("absolute path", where, f"{place!r} exists on one machine only: use a relative path")


def content_networks(document: NotebookNode) -> Iterator[Fault]:
    for where, text in _texts(document):
        found = CONTENT_NETWORK.search(DATA_ADDRESS.sub("", text))
        if found:
            yield Fault("banned call", where, f"{found.group()!r} is a content delivery network: embed what is needed")


def output_size(document: NotebookNode) -> Iterator[Fault]:
    size = output_bytes(document)
    if size > SIZE_CAP:
        yield Fault("output size", "notebook", f"{size / 1e6:.2f} MB of outputs, the cap is {SIZE_CAP / 1e6:g} MB")


def output_bytes(document: NotebookNode) -> int:
    """Bytes of the outputs that would be committed."""
    cells = documents.code_cells(documents.publishable(document))
    return sum(len(json.dumps(output, ensure_ascii=False).encode()) for cell in cells for output in cell.outputs)


def time_over_stated(document: NotebookNode, *, budget: str, seconds: float, slack: float = 1.0) -> Iterator[Fault]:
    minutes = contract.stated(document).get(budget, {}).get("minutes")
    if minutes is not None and seconds > 60 * minutes * slack:
        message = f"{seconds / 60:.2f} minutes, its header states {minutes:g} for {budget}"
        yield Fault("time over the stated budget", "notebook", message)


# ---------------------------------------------------------------- what the code asks for


def network_in_source(document: NotebookNode) -> Iterator[Fault]:
    yield from _over_source(document, code_rules.network_use)


def hard_coded_cuda(document: NotebookNode) -> Iterator[Fault]:
    yield from _over_source(document, code_rules.cuda_use)


def loader_workers(document: NotebookNode) -> Iterator[Fault]:
    yield from _over_source(document, code_rules.worker_use)


def half_precision(document: NotebookNode) -> Iterator[Fault]:
    yield from _over_source(document, code_rules.half_precision_use)


def banned_in_source(document: NotebookNode) -> Iterator[Fault]:
    yield from _over_source(document, code_rules.banned_use)


RULES: tuple[Callable[[NotebookNode], Iterable[Fault]], ...] = (
    error_outputs, widget_errors, alternative_text, absolute_paths, content_networks, output_size,
    network_in_source, hard_coded_cuda, loader_workers, half_precision, banned_in_source,
)  # fmt: skip


# ---------------------------------------------------------------- small parts


def _numbered(document: NotebookNode) -> Iterator[tuple[str, NotebookNode]]:
    for number, cell in enumerate(document.cells, start=1):
        yield f"cell {number}", cell


def _outputs(document: NotebookNode) -> Iterator[tuple[str, NotebookNode]]:
    for where, cell in _numbered(document):
        for output in cell.get("outputs", ()):
            yield where, output


def _widget_models(document: NotebookNode) -> Iterator[dict]:
    models = document.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    for model in models.values():
        yield model.get("state", {})


def _texts(document: NotebookNode) -> Iterator[tuple[str, str]]:
    """Everything a reader can see as text; tracebacks are judged by their own rule."""
    for where, cell in _numbered(document):
        yield where, cell.source
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                yield where, output.text
            for kind, value in output.get("data", {}).items():
                if kind.startswith("text/") or kind.endswith("javascript"):
                    yield where, str(value)


class _Pictures(HTMLParser):
    """The <img> elements of a piece of HTML, with the caption of the figure around them."""

    def __init__(self):
        super().__init__()
        self.found: list[dict[str, str]] = []
        self.captions: list[str] = []
        self.inside = False

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.found.append({name: value or "" for name, value in attributes})
        self.inside = self.inside or tag == "figcaption"
        if tag == "figcaption":
            self.captions.append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "figcaption"

    def handle_data(self, data):
        if self.inside:
            self.captions[-1] += data


def _picture_problems(markup: str) -> Iterator[str]:
    if "<img" not in markup.lower():
        return
    parser = _Pictures()
    parser.feed(markup)
    captions = parser.captions
    for picture in parser.found:
        alt = " ".join(picture.get("alt", "").split())
        if len(alt) < SHORTEST_ALT:
            yield f"<img> with alt={alt!r}: say in at least {SHORTEST_ALT} characters what it shows"
        elif alt.casefold() in {" ".join(text.split()).casefold() for text in (picture.get("title", ""), *captions)}:
            yield f"<img> whose alt only repeats its title or caption: {alt!r}"


def _over_source(document: NotebookNode, check: Callable[[ast.AST], Iterator[tuple[str, str]]]) -> Iterator[Fault]:
    from IPython.core.inputtransformer2 import TransformerManager

    for where, cell in _numbered(document):
        if cell.cell_type == "code":
            try:
                tree = ast.parse(TransformerManager().transform_cell(cell.source))
            except SyntaxError:
                continue  # it cannot have run either: the error output tells
            for rule, message in dict.fromkeys(check(tree)):
                yield Fault(rule, where, message)
