"""The folder of one run: its places, its facts, and its lock."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from medmtl import distributed as dist
from medmtl.errors import UserError
from medmtl.files import write_atomic
from medmtl.study import Study

_LOCK = ".lock"


@dataclass(frozen=True)
class RunFolder:
    """The places of one run. The folder's name holds the settings' digest: the same command continues the same run."""

    path: Path

    @classmethod
    def of(cls, study: Study, runs: Path) -> "RunFolder":
        return cls(runs / f"{study.name}-{study.sha256[:8]}")

    @property
    def study(self) -> Path:
        return self.path / "study.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def bundle(self) -> Path:
        return self.path / "bundle"

    @property
    def history(self) -> Path:
        return self.path / "history.jsonl"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    @property
    def facts(self) -> Path:
        """JSON: MLflow run id, hashes, what was selected, and what of it is whole in MLflow (``logged``)."""
        return self.path / "run.json"

    def read_facts(self) -> dict[str, Any]:
        return json.loads(self.facts.read_text(encoding="utf-8")) if self.facts.is_file() else {}

    def add_facts(self, facts: Mapping[str, Any]) -> None:
        write_atomic(self.facts, json.dumps({**self.read_facts(), **facts}, indent=2, sort_keys=True) + "\n")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process group at a time (E-RUN-LOCK); only rank 0 holds the lock.

        A folder that is made here, and in which nothing came to be, goes again: the command was refused.
        """
        if dist.rank() != 0:
            yield
            return
        made = False
        with contextlib.suppress(FileExistsError):
            self.path.mkdir(parents=True)
            made = True
        lock = FileLock(self.path / _LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise UserError(
                "E-RUN-LOCK",
                "another process is training in this folder",
                "wait for it, or change the seed or the name",
                where=str(self.path),
            ) from error
        try:  # apart from the one above: a Timeout of another lock, in here, is not ours
            yield
        finally:
            gone = made and self._drop_bare_lock()
            lock.release()
            if gone:
                with contextlib.suppress(OSError):  # another command has the folder now
                    self.path.rmdir()

    def _drop_bare_lock(self) -> bool:
        """Remove the lock if the folder holds nothing else; while it is held, so that who waits for it sees that."""
        with contextlib.suppress(OSError):
            if [path.name for path in self.path.iterdir()] == [_LOCK]:
                (self.path / _LOCK).unlink()
                return True
        return False
