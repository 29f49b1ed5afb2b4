"""Paths that data sets name: the root folder must hold its layout, and no file may lie outside the root."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

from ..errors import KitError


def require_root(root: str | Path | None, name: str, *needed: str) -> Path:
    """The folder of a data set, if it is there and holds what its layout needs."""
    if root is None:
        raise KitError(f"data {name!r} needs its folder: give --root FOLDER (or root=...)")
    root = Path(root).expanduser()
    if not root.is_dir():
        raise KitError(f"{root}: no such folder; give the folder that holds the {name} files")
    for item in needed:
        if not (root / item).exists():
            raise KitError(f"{root} is not in the layout of {name}: {item!r} is missing; see `medvlp data list`")
    return root


def inside(root: Path, text: str, *, where: str) -> Path:
    """root / text, if that stays in root: no absolute path, no '..', no link that leads out."""
    windows, posix = PureWindowsPath(text), PurePosixPath(text)
    if windows.is_absolute() or windows.drive or windows.root or posix.is_absolute():
        raise KitError(f"{where}: {text!r} is an absolute path; give it relative to {root}")
    if ".." in windows.parts or ".." in posix.parts:
        raise KitError(f"{where}: {text!r} leaves the folder {root}; paths may not contain '..'")
    path = root / text
    if "\\" in text and not path.exists():  # written on Windows
        path = root / text.replace("\\", "/")
    try:
        if not path.resolve().is_relative_to(root.resolve()):
            raise KitError(f"{where}: {text!r} is a link that leads out of {root}; copy the file into the folder")
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, KitError):
            raise
        raise KitError(f"{where}: {text!r} cannot be followed ({error}); check the path") from None
    return path
