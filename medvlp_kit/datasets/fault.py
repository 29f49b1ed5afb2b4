"""What a check of a data set reports: faults, each with everything it was found in, and tables."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .wording import counted

if TYPE_CHECKING:
    import pandas

ERROR, WARNING, NOTE = "error", "warning", "note"
SHOWN = 8  # entries a fault lists in the text


@dataclass(frozen=True)
class Fault:
    """One thing found, with everything it was found in."""

    kind: str
    severity: str  # error | warning | note
    message: str
    where: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckReport:
    """Faults and tables. `ok` is False when there is a fault of severity error."""

    name: str
    root: str
    studies: int
    files: int
    faults: tuple[Fault, ...]
    tables: dict[str, pandas.DataFrame] = field(repr=False)
    notice: str = ""

    @property
    def ok(self) -> bool:
        return all(fault.severity != ERROR for fault in self.faults)

    def text(self) -> str:
        """The report to read in a terminal; long lists are cut, `to_frame` has all."""
        lines = [f"{self.name}: {counted(self.studies, 'study')}, {counted(self.files, 'file')} in {self.root}"]
        lines += [self.notice] if self.notice else []
        for title, table in self.tables.items():
            if len(table):
                lines += ["", title, table.to_string(index=False)]
        lines += ["", "Faults" if self.faults else "No faults found."]
        for fault in self.faults:
            lines.append(f"{fault.severity:<8}{fault.kind}: {fault.message}")
            lines += [f"        {place}" for place in fault.where[:SHOWN]]
            if len(fault.where) > SHOWN:
                lines.append(f"        ... and {len(fault.where) - SHOWN} more")
        worst = "usable" if self.ok else "mend the errors before training"
        return "\n".join([*lines, "", f"Result: {worst}."])

    def to_frame(self) -> pandas.DataFrame:
        """One row a fault and place."""
        import pandas

        rows = [(f.severity, f.kind, f.message, place) for f in self.faults for place in f.where or ("",)]
        return pandas.DataFrame(rows, columns=("severity", "kind", "message", "where"))

    def to_json(self) -> str:
        faults = [{**vars(fault), "where": list(fault.where)} for fault in self.faults]
        tables = {title: table.to_dict("records") for title, table in self.tables.items()}
        head = {"name": self.name, "root": self.root, "studies": self.studies, "files": self.files, "ok": self.ok}
        return json.dumps({**head, "notice": self.notice, "faults": faults, "tables": tables}, indent=1, default=str)
