"""An executed notebook as one HTML page that needs no network: pictures embedded, formulas as MathML, no scripts."""

from __future__ import annotations

import html
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbformat import NotebookNode

# The stock page loads require.js, MathJax, Mermaid and the widget manager from a content delivery network.
TEMPLATE = """\
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block data_widget_view -%}{%- endblock -%}
{%- block footer -%}</html>{%- endblock -%}
"""
# What makes a browser fetch something by itself; an ordinary <a href> does not.
FETCH = re.compile(r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//"""
                   r"""|<link\b[^>]*\bhref=["']?(?:https?:)?//|@import\s|url\(["']?(?:https?:)?//""", re.I)  # fmt: skip


def write_page(document: NotebookNode, path: str | os.PathLike, *, title: str) -> Path:
    """Write `document` as an HTML page; the picture of what a reader sees, without JupyterLab. Returns the path."""
    import copy

    exporter = _exporter()
    document = copy.deepcopy(document)
    document.metadata["title"] = title
    body, _ = exporter.from_notebook_node(document)
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(body, encoding="utf-8")
    os.replace(partial, path)
    return path


def mathml(formula: str, *, display: str) -> str:
    """LaTeX as MathML, which browsers draw themselves; the source in a code element where it cannot be read."""
    from latex2mathml.converter import convert

    try:
        return convert(html.unescape(formula).strip(), display=display)
    except Exception:  # any formula outside what the converter knows
        return f"<code>{html.escape(formula)}</code>"


def _exporter():
    from jinja2 import DictLoader, pass_context
    from nbconvert.exporters.html import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def inline_math(self, body: str) -> str:
            return mathml(body, display="inline")

        def block_math(self, body: str) -> str:
            return mathml(body, display="block")

        def latex_environment(self, name: str, body: str) -> str:
            return mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", display="block")

    class Exporter(HTMLExporter):
        @pass_context
        def markdown2html(self, context, source):
            attachments = context.get("cell", {}).get("attachments", {})
            renderer = Renderer(escape=False, attachments=attachments, anchor_link_text="¶")
            return MarkdownWithMath(renderer=renderer).render(source)

    loader = DictLoader({"page.html.j2": TEMPLATE})
    return Exporter(template_name="lab", template_file="page.html.j2", extra_loaders=[loader])
