"""What is told to MLflow, as rows: in MLflow's alphabet, without absolute paths, and kept in a file while they wait."""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medmtl.files import append_line, write_atomic

Row = dict[str, Any]
SPOOL = "mlflow-spool.jsonl"
KEY_LIMIT, PARAM_LIMIT, TAG_LIMIT = 250, 6000, 8000  # MLflow's limits, in characters


class Spool:
    """Rows that wait for the server, as JSON lines in a file that is absent when nothing waits."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._count = len(self.rows())

    def __len__(self) -> int:
        return self._count

    def rows(self) -> list[Row]:
        """Every whole row; one cut short by a kill is left out."""
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []:
            with contextlib.suppress(json.JSONDecodeError):
                found.append(json.loads(line))
        return found

    def add(self, rows: list[Row]) -> None:
        """Append rows."""
        if rows:
            append_line(self.path, "\n".join(json.dumps(row) for row in rows))
            self._count += len(rows)

    def replace(self, rows: list[Row]) -> None:
        """Hold exactly ``rows``."""
        if rows:
            write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        else:
            self.path.unlink(missing_ok=True)
        self._count = len(rows)


def tag_row(key: str, value: Any) -> Row:
    """The row of a tag, cut to MLflow's limits."""
    return {"kind": "tag", "key": clean_name(key), "value": as_text(value, TAG_LIMIT)}


def clean_name(name: str) -> str:
    """``name`` in the characters MLflow allows: letters, digits, ``_ - . : /`` and spaces, no empty or dotted part."""
    parts = re.sub(r"[^\w\-.:/ ]", "_", name).split("/")
    return "/".join(part for part in parts if part.strip(".") and part)[:KEY_LIMIT] or "_"


def as_text(value: Any, limit: int) -> str:
    """``value`` as text without absolute paths, cut to ``limit``."""
    value = _without_paths(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _without_paths(value: Any) -> Any:
    """Absolute paths become ``…/name``: they hold user names, and often those of patients."""
    if isinstance(value, Mapping):
        return {_without_paths(str(key)): _without_paths(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_without_paths(item) for item in value]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        return value
    if re.match(r"(/|~|[A-Za-z]:[\\/]|\\\\|[a-z0-9+]+://)", value):
        return "…/" + re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    return re.sub(
        r"(?<![\w./])(?:[A-Za-z]:)?[/\\]+[^\s'\",;\[\]{}()]*?([^\s'\",;\[\]{}()/\\]+)(?=[\s'\",;\[\]{}()]|$)",
        r"…/\1",
        value,
    )
