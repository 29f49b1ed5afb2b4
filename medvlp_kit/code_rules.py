"""What a lesson's code may not ask for: rules on a syntax tree, for notebooks and for the kit's own sources alike.

Each rule yields pairs (rule, message).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

SHELL_NETWORK = re.compile(r"\b(?:pip3?|apt(?:-get)?|conda|mamba|uv|wget|curl|git|brew|npm|huggingface-cli|kaggle)\b")
SHELLS = {"system", "getoutput", "run_line_magic", "run_cell_magic", "run", "Popen", "check_call", "check_output"}
NETWORK_MODULES = {
    "aiohttp", "ftplib", "gdown", "http.client", "httpx", "kagglehub", "requests", "urllib.request", "urllib3", "wget",
}  # fmt: skip
NETWORK_CALLS = {
    "hf_hub_download", "load_dataset", "load_state_dict_from_url", "snapshot_download", "urlopen", "urlretrieve",
}  # fmt: skip
WIDGET_CALLS = {"interact", "interact_manual", "interactive", "interactive_output"}
OUTPUT_WIDGET = "widgets.Output swallows errors and can hang: set the value of widgets.HTML from observe"


def network_use(tree: ast.AST) -> Iterator[tuple[str, str]]:
    rule = "network use"
    for node in ast.walk(tree):
        for module in _imported(node):
            if any(module == name or module.startswith(name + ".") for name in NETWORK_MODULES):
                yield rule, f"import {module}"
        if not isinstance(node, ast.Call):
            continue
        name, texts = _called(node), [value for value in map(_text, node.args) if value is not None]
        if name in NETWORK_CALLS:
            yield rule, f"{name}(...)"
        elif name == "from_pretrained" and texts and not texts[0].startswith("."):
            yield rule, f"from_pretrained({texts[0]!r}) asks a hub: build from a config, or read a local folder"
        elif name in SHELLS:
            words = [_text(item) or "" for part in node.args for item in getattr(part, "elts", ())]
            command = " ".join([*texts, *words])
            if SHELL_NETWORK.search(command):
                yield rule, f"{command.strip()!r}"
        if any(word.arg == "pretrained" and _constant(word.value) is True for word in node.keywords):
            yield rule, f"{name}(pretrained=True) downloads weights"
        if ast.unparse(node.func).startswith("torch.hub."):
            yield rule, f"{ast.unparse(node.func)}(...)"


def cuda_use(tree: ast.AST) -> Iterator[tuple[str, str]]:
    asked = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.IfExp, ast.If)) and "is_available" in ast.unparse(node.test)
        for inner in ast.walk(node)
    } | {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Compare) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in asked:
            continue
        text = _text(node)
        if text is not None and re.fullmatch(r"cuda(:\d+)?", text):
            yield "hard-coded cuda", f"{text!r}: most readers have no such device"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
            yield "hard-coded cuda", ".cuda(): use .to(device)"


def worker_use(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        given = [word.value for word in getattr(node, "keywords", ()) if word.arg == "num_workers"]
        if isinstance(node, ast.Assign) and "num_workers" in map(ast.unparse, node.targets):
            given.append(node.value)
        for value in given:
            if _constant(value) != 0:
                yield "loader workers", f"num_workers={ast.unparse(value)}: worker processes hang in notebooks; use 0"


def half_precision_use(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Most processors only imitate bf16, more slowly than they compute in float32: autocast to it must ask first."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node) == "autocast" and "bfloat16" in ast.unparse(node):
            if not {"enabled", None} & {word.arg for word in node.keywords}:  # None: **options
                yield "half precision unasked", f"{ast.unparse(node)}: add enabled=has_bf16() from medvlp_kit.pretrain"


def banned_use(tree: ast.AST) -> Iterator[tuple[str, str]]:
    rule = "banned call"
    for node in ast.walk(tree):
        for module in _imported(node):
            if module.startswith("captum.insights"):
                yield rule, "captum.insights is gone from captum: use captum.attr"
            if module == "ipywidgets.Output":
                yield rule, OUTPUT_WIDGET
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("widgets.Output", "ipywidgets.Output"):
            yield rule, OUTPUT_WIDGET
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code" and _constant(node.value) is not False:
            yield rule, "trust_remote_code runs code from elsewhere"
        names = [ast.unparse(node.func)] if isinstance(node, ast.Call) else []
        names += [ast.unparse(mark) for mark in getattr(node, "decorator_list", ()) if not isinstance(mark, ast.Call)]
        for name in names:
            if name.split(".")[-1] in WIDGET_CALLS:
                yield rule, f"{name} can hang a run and hides errors: set the value of widgets.HTML from observe"
            if name in ("torch.load", "pickle.load", "pickle.loads"):
                yield rule, f"{name} runs whatever is in the file: use safetensors"
        if isinstance(node, ast.Call) and _called(node) == "run_line_magic" and len(node.args) == 2:
            magic, rest = map(_text, node.args)
            if magic == "matplotlib" and rest in ("widget", "notebook", "ipympl"):
                yield rule, f"%matplotlib {rest}: figures go through figures.show"


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def _called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def _constant(node: ast.AST) -> object:
    return node.value if isinstance(node, ast.Constant) else ...


def _text(node: ast.AST) -> str | None:
    value = _constant(node)
    return value if isinstance(value, str) else None
