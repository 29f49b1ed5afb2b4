"""The `medvlp` command: a thin door to the kit. Heavy imports wait until a command needs them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from .errors import KitError

FEW_STEPS = 200  # of a run: below, `pretrain` says that more epochs would help
app = typer.Typer(
    name="medvlp",
    help="The runnable survey of medical vision-language pretraining. Teaching phantoms only; not for clinical use.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help, and half the time to show it
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Data sets the kit reads, and whether a folder is fit to use.", no_args_is_help=True)
app.add_typer(data_app, name="data")
Option = typer.Option

BudgetOption = Annotated[str, Option("--budget", "-b", help="tiny, laptop or gpu.")]
RootOption = Annotated[Path | None, Option("--root", help="Folder of the data set (or the manifest file).")]
ManifestOption = Annotated[Path | None, Option("--manifest", help="Your own table; its paths start at --root.")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. A KitError becomes one line and exit code 2; --debug shows where it came from."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        app(args=arguments, prog_name="medvlp")
    except KitError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


@app.callback()
def everywhere(
    debug: Annotated[bool, Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    """Options of every command."""


@app.command()
def run(
    notebooks: Annotated[list[Path], typer.Argument(help="Notebook files.")],
    budget: Annotated[str | None, Option("--budget", "-b", help="Else MEDVLP_BUDGET, else laptop.")] = None,
    parameter: Annotated[list[str] | None, Option("--parameter", "-p", help="name=value; may be repeated.")] = None,
    out: Annotated[Path, Option("--out", "-o", help="Folder of executed copies and pages.")] = Path("runs"),
    html: Annotated[bool, Option(help="Write an HTML page.")] = True,
    timeout: Annotated[float | None, Option(help="Seconds a cell may take; else the budget decides.")] = None,
    slack: Annotated[float, Option(help="Factor on the stated time, for a slow or busy machine.")] = 1.0,
    in_place: Annotated[bool, Option("--in-place", help="Keep good outputs in the notebook too.")] = False,
    stale: Annotated[bool, Option("--stale", help="Leave out what is up to date.")] = False,
) -> None:
    """Execute notebooks and audit the result."""
    from . import budget as budgets
    from . import notebook as documents
    from . import runner

    size = budgets.budget(budget)
    failed = 0
    for path in notebooks:
        document = documents.read(path)
        reason = documents.stale(document)
        if stale and not reason:
            print(f"{path}: outputs are up to date")
            continue
        values = documents.parse_parameters(parameter or [], documents.parameters(document, name=path.name))
        print(f"{path} at the {size.name} budget" + (f" ({reason})" if stale else ""))
        result = runner.run(
            path, budget=size.name, parameters=values, out=out, html=html, timeout=timeout, in_place=in_place,
            progress=True, slack=slack,
        )  # fmt: skip
        for table in result.tables:
            print(f"\n{table}")
        print(f"\n{result.seconds:.0f} s, peak memory {result.peak_memory_mb} MB; notebook: {_short(result.notebook)}")
        if result.html:
            print(f"HTML page: {_short(result.html)}")
        for problem in result.problems:
            print(f"problem: {problem}", file=sys.stderr)
        failed += not result.ok
    if failed:
        raise typer.Exit(1)


@app.command()
def pretrain(
    recipe: Annotated[str, Option("--recipe", "-r", help="See medvlp recipes.")] = "convirt",
    data: Annotated[str, Option("--data", "-d", help="See medvlp data list.")] = "phantoms",
    root: RootOption = None,
    manifest: ManifestOption = None,
    out: Annotated[Path, Option("--out", "-o", help="Folder of the run.")] = Path("runs/pretrain"),
    budget: BudgetOption = "laptop",
    seed: Annotated[int, Option(help="Of weights, batches and phantoms.")] = 0,
    resume: Annotated[bool, Option("--resume", help="Continue the run in --out.")] = False,
    epochs: Annotated[int | None, Option(help="Instead of the budget's.")] = None,
    batch_size: Annotated[int | None, Option(help="Instead of the budget's.")] = None,
    learning_rate: Annotated[float | None, Option(help="Instead of the budget's.")] = None,
    image_size: Annotated[int | None, Option(help="Pixels a side, instead of the budget's.")] = None,
    train_studies: Annotated[int | None, Option(help="Phantoms to draw, instead of the budget's.")] = None,
    precision: Annotated[str, Option(help="auto, no or bf16.")] = "auto",
    workers: Annotated[int, Option(help="Background readers.")] = 0,
    chunk: Annotated[int | None, Option(help="Studies encoded at a time: large batches in little memory.")] = None,
) -> None:
    """Pretrain a recipe on phantoms or real studies."""
    from . import budget as budgets
    from . import datasets, recipes
    from . import pretrain as loop

    recipes.get(recipe)
    changes = {
        "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "image_size": image_size,
        "train_studies": train_studies,
    }  # fmt: skip
    sizes = budgets.budget(budget).but(**{name: value for name, value in changes.items() if value is not None})
    name, place, options = _source(data, root, manifest)
    if name == "phantoms":
        options |= {"size": sizes.train_studies, "seed": seed}
    collection = datasets.load(name, place, split="train", **options)
    sizes = sizes.but(train_studies=len(collection))
    described = {"name": name, **({"root": str(place)} if place is not None else {}), **options}
    first = os.environ.get("RANK", "0") == "0"  # under accelerate launch, one process speaks for all
    if first:
        print(f"{recipe} on {len(collection):,} studies of {collection.name}, {sizes.name} budget")
    finished = loop.pretrain(
        recipe, collection, budget=sizes, out=out, seed=seed, resume=resume, data=described, precision=precision,
        workers=workers, chunk=chunk,
    )  # fmt: skip
    if first:
        print(f"run: {out} ({finished.steps:,} steps); next: medvlp evaluate {out}")
        if finished.steps < FEW_STEPS:
            print(f"note: so few steps teach little; --epochs goes over the {len(collection):,} studies more often")


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.")],
    task: Annotated[str, Option("--task", "-t", help="zero-shot, retrieval, grounding, ... or all.")] = "all",
    data: Annotated[str | None, Option("--data", "-d", help="Other data than those of the run.")] = None,
    root: RootOption = None,
    manifest: ManifestOption = None,
    seed: Annotated[int, Option(help="Of bootstrap and controls.")] = 0,
) -> None:
    """Evaluate a run on held-out studies, each number with its interval and beside its control."""
    from .downstream.evaluate import evaluate as examine

    if manifest is not None:
        if root is not None or data is not None:
            raise KitError("--manifest names the data already: leave out --data and --root")
        data, root = "manifest", manifest
    examine(folder, task=task.replace("_", "-"), data=data, root=root, seed=seed)


@data_app.command("list")
def data_list() -> None:
    """The data sets the kit reads, with their layout and licence."""
    from . import datasets

    for row in datasets.describe().to_dict("records"):
        print(row.pop("name"))
        for name, value in row.items():
            print(f"    {name:<8} {value}")


@data_app.command("check")
def data_check(
    root: Annotated[Path, typer.Argument(help="Folder of studies, or a manifest file.")],
    data: Annotated[str | None, Option("--data", "-d", help="Its layout; guessed when left out.")] = None,
    manifest: ManifestOption = None,
) -> None:
    """Look for leakage between splits, duplicates, unreadable files, empty reports and identifying tags."""
    from .datasets.check import check_root

    report = check_root(root, data=data, manifest=manifest)
    print(report.text())
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def recipes() -> None:
    """The survey's systems that the kit can pretrain."""
    from . import recipes as known

    rows = [("name", "system", "year", "objectives", "image encoder", "text encoder", "fusion")]
    for recipe in map(known.get, known.names()):
        rows.append((
            recipe.name, recipe.title, str(recipe.year), " + ".join(recipe.objectives),
            recipe.image_encoder or "the budget's", recipe.text_encoder, recipe.fusion or "none",
        ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


@app.command()
def budgets() -> None:
    """The sizes behind the words tiny, laptop and gpu."""
    from dataclasses import asdict

    from .budget import BUDGETS

    names = list(BUDGETS)
    print(f"{'':<18}" + "".join(f"{name:>14}" for name in names))
    for field in asdict(BUDGETS[names[0]]):
        print(f"{field:<18}" + "".join(f"{getattr(BUDGETS[name], field)!s:>14}" for name in names))


@app.command()
def doctor() -> None:
    """What this machine has, what is missing, and how to mend it."""
    from .doctor import examine

    raise typer.Exit(0 if examine() else 1)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def lab(context: typer.Context) -> None:
    """Open JupyterLab on the lessons (further arguments go to jupyter lab)."""
    import subprocess

    raise typer.Exit(subprocess.call([sys.executable, "-m", "jupyterlab", str(_lessons("lab")), *context.args]))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def explore(context: typer.Context) -> None:
    """Open the page of explorers alone, without code, in the browser (further arguments go to voila)."""
    import subprocess

    from .explorers.app import app_command

    command, environment = app_command(_lessons("explore") / "explore.ipynb", context.args)
    raise typer.Exit(subprocess.call(command, env=environment))


def _lessons(command: str) -> Path:
    """The folder of the notebooks, here or in the checkout that is installed."""
    places = (Path("notebooks"), Path(__file__).parents[1] / "notebooks")
    folder = next((path for path in places if path.is_dir()), None)
    if folder is None:
        raise KitError(f"there is no folder notebooks here: run medvlp {command} in a checkout of the kit")
    return folder


def _source(data: str, root: Path | None, manifest: Path | None) -> tuple[str, Path | None, dict]:
    """Name, place and options of a data set, from --data, --root and --manifest."""
    from . import datasets

    name = datasets.known(data)
    if manifest is None:
        return name, root, {}
    if name not in ("phantoms", "manifest"):  # phantoms is what --data says when it was left out
        raise KitError(f"--manifest reads your own table, --data {name} another layout: choose one")
    return "manifest", manifest, {} if root is None else {"image_root": str(root)}


def _short(path: Path) -> Path:
    """The path from here, where that is shorter."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


if __name__ == "__main__":
    main()
