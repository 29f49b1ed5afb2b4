"""Nearest neighbours in a large gallery: exactly, in blocks, or with an index of FAISS.

Exact search reads the whole gallery for every query. An inverted index (`cells`) sorts the gallery into cells once and
reads only the nearest few of them: faster, and sometimes wrong. How often is to be measured, by `overlap`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import KitError, unknown
from .ranking import top

INDEXES = ("exact", "faiss")


class Gallery:
    """M unit vectors (M, D) to search in by cosine.

    index:  "exact" searches in blocks, ties to the lower column. "faiss" asks the library (pip install faiss-cpu): the
            same neighbours, except where the k-th and the next score are equal; then FAISS chooses as it pleases.
    cells:  with "faiss", an inverted index of that many cells, of which each search reads the `probes` nearest ones
    """

    def __init__(self, vectors: Tensor, *, index: str = "exact", cells: int | None = None, probes: int = 8, seed: int = 0):
        if index not in INDEXES:
            raise unknown("index", index, INDEXES)
        if vectors.ndim != 2 or 0 in vectors.shape:
            raise KitError(f"a gallery has shape (M, D), both at least 1; got {tuple(vectors.shape)}")
        if cells is not None and (index != "faiss" or not 1 <= cells <= len(vectors)):
            raise KitError(f"cells={cells}: cells need index='faiss' and are from 1 to {len(vectors)}, the vectors given")
        self.vectors = vectors.detach().float().cpu()
        self._index = _faiss_index(self.vectors, cells, probes, seed) if index == "faiss" else None

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, queries: Tensor, *, k: int) -> Tensor:
        """The k nearest of each query (N, D), nearest first: (N, k) int64; -1 where the cells read hold fewer than k."""
        queries = queries.detach().float().cpu()
        if queries.ndim != 2 or queries.shape[1] != self.vectors.shape[1]:
            raise KitError(f"queries {tuple(queries.shape)} for a gallery of width {self.vectors.shape[1]}: give (N, width)")
        if self._index is None:
            return top((queries, self.vectors), k)
        if not 1 <= k <= len(self):
            raise KitError(f"k={k}: give a whole number from 1 to the number of candidates ({len(self)})")
        values, columns = map(torch.from_numpy, self._index.search(queries.numpy(), k))
        # Within the k the kit's rule for ties: by column, then stably by score; -1 has the lowest score and stays last.
        columns, by_column = columns.sort(dim=1)
        order = values.gather(1, by_column).sort(dim=1, descending=True, stable=True).indices
        return columns.gather(1, order)


def overlap(found: Tensor, exact: Tensor) -> float:
    """The share of the exact neighbours (N, k) that an index has found (N, k), whatever their order."""
    if found.shape != exact.shape:
        raise KitError(f"neighbours {tuple(found.shape)} and {tuple(exact.shape)}: compare as many of as many queries")
    return (found[:, :, None] == exact[:, None]).any(2).double().mean().item()


def _faiss_index(vectors: Tensor, cells: int | None, probes: int, seed: int):
    try:
        import faiss
    except ImportError:
        raise KitError("index='faiss' needs the package faiss: pip install faiss-cpu, or use index='exact'") from None

    width = vectors.shape[1]
    if cells is None:
        index = faiss.IndexFlatIP(width)
    else:
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed, index.nprobe = seed + 1, min(probes, cells)  # FAISS takes 0 for its own choice
        index.train(vectors.numpy())
    index.add(vectors.numpy())
    return index
