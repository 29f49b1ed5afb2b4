"""The one place that knows where `assets/` lies."""

from __future__ import annotations

from pathlib import Path

from medvlp_kit.errors import KitError

ROOT = Path(__file__).resolve().parents[1] / "assets"


def asset(*parts: str) -> Path:
    """The path of an asset, such as `asset("lexicon", "en.yaml")`. Raises `KitError` when it is not there."""
    path = ROOT.joinpath(*parts)
    if not path.exists():
        raise KitError(
            f"asset {'/'.join(parts)!r} not found under {ROOT}: install the package from a checkout, pip install -e ."
        )
    return path
