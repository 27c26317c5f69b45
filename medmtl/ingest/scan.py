"""What every file of a tree is: its header is read once, and kept in an index beside the key."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from medmtl import __version__
from medmtl.files import disk_errors
from medmtl.ingest.ledger import PASSING
from medmtl.ingest.pool import Lost, Pool
from medmtl.ingest.scanned import Scanned
from medmtl.ingest.tasks import Headers, read_headers
from medmtl.ingest.walk import Found
from medmtl.io.dicom.record import header_from_json
from medmtl.io.reasons import REMEDY

_CHUNK = 64  # files that one worker reads before it reports
_FORMAT = 3  # of a line of the index; of another one nothing is taken over
_RAISED = {"died": "killed the process that read it", "timeout": "took too long to read", "raised": "cannot be read"}


class Index:
    """``index.jsonl`` in the private folder: what was found in each file, valid while the file stays as it was."""

    def __init__(self, path: Path, *, root: Path, keywords: Sequence[str], max_bytes: int) -> None:
        self.path, self.root, self.keywords, self.max_bytes = path, root, tuple(keywords), max_bytes
        self.heading = json.dumps(
            {"medmtl": __version__, "format": _FORMAT, "keywords": sorted(keywords), "max_bytes": max_bytes}
        )
        self.lines: dict[str, str] = {}
        self.stale = 0
        self._load()

    def _load(self) -> None:
        try:
            content = self.path.read_text(encoding="utf-8")
        except (FileNotFoundError, UnicodeDecodeError):
            content = ""
        lines = content.split("\n")
        if lines[0] != self.heading:
            self._begin([])
            return
        if lines[-1]:  # cut by a kill
            self._begin(lines[1:-1])
        for line in lines[1:-1]:
            try:
                self.lines[json.loads(line)["file"]["path"]] = line
            except (ValueError, TypeError, KeyError):
                self.stale += 1  # damaged: the file is read again
        self.stale += len(lines) - 2 - len(self.lines)

    def _begin(self, lines: Iterable[str]) -> None:
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        with disk_errors(self.path):
            temporary.touch(mode=0o600)
            temporary.write_text("\n".join([self.heading, *lines, ""]), encoding="utf-8")
            temporary.replace(self.path)

    def request(self, files: Sequence[Found]) -> Headers:
        """What a worker needs to read these files."""
        return Headers(self.root, tuple(files), self.keywords, self.max_bytes)

    def add(self, files: Sequence[Found], lines: Sequence[str]) -> None:
        """Keep what was found in ``files``, a line for each."""
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as stream:
            stream.write("".join(f"{line}\n" for line in lines))
        self.lines.update((found.path, line) for found, line in zip(files, lines, strict=True))

    def known(self, found: Found, *, at_once: bool = False) -> Scanned | None:
        """What is known of a file, if it is still the same. What may pass is tried again, except ``at_once``."""
        line = self.lines.get(found.path)
        if line is None:
            return None
        tree = json.loads(line)
        if tree["file"] != asdict(found) or (tree.get("code") in PASSING and not at_once):
            return None
        header = None
        if "header" in tree:
            header = header_from_json({**tree["header"], "path": str(self.root / found.path)})
        code = tree.get("code", "")
        remedy = tree.get("remedy") or REMEDY.get(code, "")
        return Scanned(found, tree["kind"], header, code, tree.get("what", ""), remedy, tree.get("pages", 1))

    def keep_only(self, files: Iterable[Found]) -> None:
        """Write the index anew when much of it is of files that are gone or changed."""
        wanted = {found.path for found in files}
        kept = {path: line for path, line in self.lines.items() if path in wanted}
        if self.stale + len(self.lines) - len(kept) > max(100, len(kept)):
            self._begin(kept.values())
            self.lines, self.stale = kept, 0


def scan(
    files: Sequence[Found],
    index: Index,
    pool: Pool,
    *,
    advance: Callable[[int], None],
    stopped: Callable[[], bool],
) -> tuple[dict[str, Scanned], int]:
    """What each file is, by path, and how many had to be read. Stopped early, some files are missing from the result.

    A file whose reading kills a worker is refused with ``E-ING-WORKER``; the others of its chunk are not lost.
    """
    results = {found.path: known for found in files if (known := index.known(found)) is not None}
    advance(len(results))
    new = [found for found in files if found.path not in results]
    size = max(1, min(_CHUNK, -(-len(new) // (4 * pool.processes))))
    chunks = [index.request(new[start : start + size]) for start in range(0, len(new), size)]
    retry: list[Found] = []
    for chunk, lines in pool.map(read_headers, chunks, stopped=stopped):
        if isinstance(lines, Lost):
            retry += chunk.files
        else:
            index.add(chunk.files, lines)
            advance(len(chunk.files))
    for alone, lines in pool.map(read_headers, [index.request([found]) for found in retry], stopped=stopped):
        if isinstance(lines, Lost):
            (found,) = alone.files
            what = f"the file {_RAISED[lines.why]} ({lines.detail})"
            results[found.path] = Scanned(found, "unread", None, "E-ING-WORKER", what, REMEDY["E-ING-WORKER"])
        else:
            index.add(alone.files, lines)
        advance(1)
    results |= {found.path: read for found in new if (read := index.known(found, at_once=True)) is not None}
    return results, len(new)
