"""From scenes to small tables of numbers: bodies, exposures and the signs to draw, one row an exam or a sign.

Every number is drawn on the CPU from the streams of the scene (`Scene.draw`), so a picture depends neither on the
batch it is drawn in nor on the device. The upper 32 bits of `draw` are the patient's: body and the shapes of findings,
which a prior exam shares. The lower bits are the exam's: pose, exposure, noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .atlas import NOISE_MARGIN, VARIANTS
from .scene import FINDINGS, SEVERITIES, ZONES, Scene
from .streams import combine, uniforms

RIGHT, LEFT = 0, 1  # the patient's sides; a frontal picture shows the patient's right on its left

# Lengths are in half-pictures: the picture is the square [-1, 1]^2, y downwards, before scale and shift.
BODY = {  # the patient's: name -> (low, high)
    "lung_width": (0.66, 0.74),
    "apex": (-0.72, -0.64),
    "base": (0.60, 0.72),  # height of the costophrenic angles
    "dome_right": (0.21, 0.28),  # how far each diaphragm dome rises above its angle
    "dome_left": (0.15, 0.22),
    "heart_left": (0.37, 0.46),  # extents of the heart from the midline
    "heart_right": (0.145, 0.185),
    "heart_centre": (0.20, 0.27),
    "heart_height": (0.33, 0.38),
    "knob": (0.145, 0.185),  # aortic knob from the midline
    "knob_height": (-0.31, -0.25),
    "upper_width": (0.095, 0.125),
    "trunk": (0.115, 0.15),  # pulmonary trunk from the midline
    "stoutness": (0.0, 1.0),
    "shoulders": (-0.76, -0.66),
    "breast": (0.25, 1.0),
    "stomach": (-0.2, 1.0),
    "stomach_width": (0.09, 0.16),
    "rib_contrast": (0.75, 1.25),
    "vessel_contrast": (0.8, 1.2),
    "spine_bend": (-0.02, 0.02),
    "page": (0, VARIANTS),
    "clavicle": (-0.50, -0.45),
    "scapula": (-0.02, 0.08),
}
POSE = {  # the exam's
    "scale": (1.0, 1.13),
    "shift_x": (-0.05, 0.05),
    "shift_y": (-0.06, 0.06),
    "tilt": (-0.045, 0.045),
    "turn": (-0.03, 0.03),  # rotation about the long axis: midline structures move sideways
    "breath": (-0.03, 0.05),
    "brightness": (-0.16, 0.16),
    "contrast": (0.82, 1.22),
    "gamma": (0.85, 1.18),
    "noise": (0.006, 0.022),
    "noise_x": (0, NOISE_MARGIN),
    "noise_y": (0, NOISE_MARGIN),
    "cloud_x": (0, NOISE_MARGIN),
    "cloud_y": (0, NOISE_MARGIN),
    "marker": (0, 3),  # none, R, L
    "marker_x": (0.04, 0.16),
    "marker_y": (0.04, 0.22),
    "collimation": (0, 1),
    "edge_left": (0, 1),
    "edge_right": (0, 1),
    "edge_top": (0, 1),
    "edge_bottom": (0, 1),
    "grade": (0, 1),
}


class Anatomy:
    """The numbers of B exams; `anatomy.lung_width` and so on are (B,) float32 tensors on the device."""

    def __init__(self, scenes: Sequence[Scene], device: torch.device | str = "cpu"):
        draws = np.array([scene.draw for scene in scenes], dtype=np.uint64)
        body = uniforms(draws >> np.uint64(32), len(BODY))
        pose = uniforms(draws, len(POSE))
        ranges = np.array([*BODY.values(), *POSE.values()], dtype=np.float32)
        table = np.concatenate([body, pose], axis=1) * (ranges[:, 1] - ranges[:, 0]) + ranges[:, 0]
        extra = [(s.sex == "F", s.projection == "AP", (s.age - 20) / 70) for s in scenes]
        table = np.concatenate([table, np.array(extra, dtype=np.float32).reshape(-1, 3)], axis=1)
        names = (*BODY, *POSE, "female", "bedside", "years")
        columns = torch.from_numpy(np.ascontiguousarray(table.T.astype(np.float32))).to(device)  # (names, B)
        self._hold(names, columns)

    def _hold(self, names: tuple[str, ...], columns: Tensor) -> None:
        self._names, self._columns, self.size = names, columns, columns.shape[1]
        self.__dict__.update(zip(names, columns.unbind(0), strict=True))

    def part(self, rows: slice) -> Anatomy:
        """The numbers of some of the exams."""
        part = object.__new__(Anatomy)
        part._hold(self._names, self._columns[:, rows])
        return part


@dataclass(frozen=True)
class Marks:
    """All drawings of one finding in a batch: n rows, one a sign and side (a bilateral sign has two rows)."""

    exam: Tensor  # (n,) int64 rows of the batch
    side: Tensor  # (n,) int64 RIGHT or LEFT
    grade: Tensor  # (n,) float32 0 mild, 1 moderate, 2 severe
    strength: Tensor  # (n,) float32 1 where definite, less where only possible
    zone: Tensor  # (n,) int64 index into ZONES, 1 where the sign has none
    count: Tensor  # (n,) int64
    shape: Tensor  # (n, 24) float32 in [0, 1): the patient's own shape of this finding on this side

    def __len__(self) -> int:
        return len(self.exam)


POSSIBLE = 0.6  # contrast of a sign that is only possible, relative to a definite one
_SHAPES = 24
_GRADE = {name: i for i, name in enumerate(SEVERITIES)}
_ZONE = {name: i for i, name in enumerate(ZONES)}


def marks(scenes: Sequence[Scene], device: torch.device | str = "cpu") -> dict[str, Marks]:
    """The signs of a batch, by finding; findings that nobody has are left out."""
    rows: dict[str, list] = {}
    for exam, scene in enumerate(scenes):
        patient = scene.draw >> 32
        for sign in scene.signs:
            faint = POSSIBLE if sign.certainty == "possible" else 1.0
            for side in (RIGHT, LEFT) if sign.side == "bilateral" else (LEFT if sign.side == "left" else RIGHT,):
                key = combine(patient, FINDINGS.index(sign.finding), side)
                zone = _ZONE.get(sign.zone, 1)
                rows.setdefault(sign.finding, []).append(
                    (exam, side, _GRADE[sign.severity], faint, zone, sign.count, key)
                )
    table = {}
    for name, found in rows.items():
        *columns, keys = zip(*found, strict=True)
        exam, side, grade, faint, zone, count = (torch.tensor(column, device=device) for column in columns)
        shape = torch.from_numpy(uniforms(keys, _SHAPES)).to(device)
        table[name] = Marks(exam, side, grade.float(), faint.float(), zone, count, shape)
    return table
