"""The secret that all pseudonyms come from: one small file, for its owner alone, never beside what it protects."""

import json
import os
import secrets
import stat
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from medmtl.errors import UserError
from medmtl.files import disk_errors
from medmtl.io.reasons import refusal

VERSION = 1
SECRET_BYTES = 32


@dataclass(frozen=True)
class Key:
    """A secret of 32 random bytes, and the source folders that were de-identified with it (absolute paths)."""

    secret: bytes
    sources: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Without the secret, so that no log or traceback shows it."""
        return f"Key(sources={len(self.sources)})"


def load_or_make_key(path: Path, *, out: Path | None = None) -> Key:
    """The key at ``path``; made with mode 0600 if there is none. Of several processes that make it at once, one wins.

    Raises SafetyRefusal when others may read the file (``E-DEID-KEY-MODE``), when it lies in or below ``out``, the
    folder of what it protects (``E-DEID-KEY-PLACE``), or when it is damaged (``E-DEID-KEY``).
    """
    if out is not None and path.resolve().is_relative_to(out.resolve()):
        raise refusal("E-DEID-KEY-PLACE", "the key lies inside the folder that it protects", where=str(path))
    if not path.exists():
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary = _private_temporary(path, _encoded(Key(secrets.token_bytes(SECRET_BYTES))))
            try:
                os.link(temporary, path)  # fails where the file exists by now: then that one is the key
            except FileExistsError:
                pass
            finally:
                temporary.unlink(missing_ok=True)
    return _load(path)


def remember_source(path: Path, source: Path) -> Key:
    """The key, with ``source`` among its folders: verification looks there for what must not be left.

    Callers hold the lock of the private folder.
    """
    key = _load(path)
    name = str(source.resolve())
    if name not in key.sources:
        key = replace(key, sources=(*key.sources, name))
        write_private(path, _encoded(key))
    return key


def write_private(path: Path, content: bytes | str) -> Path:
    """Write ``content`` whole or not at all, readable by its owner alone (0600) from the first byte on."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = _private_temporary(path, content.encode() if isinstance(content, str) else content)
        try:
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def private_folder(path: Path, *, out: Path, source: Path) -> Path:
    """The folder of everything that must not be shared: made with mode 0700, neither in ``out`` nor in ``source``."""
    resolved = path.resolve()
    for other, name in ((out, "output"), (source, "source")):
        if resolved.is_relative_to(other.resolve()):
            raise refusal("E-DEID-KEY-PLACE", f"the private folder lies inside the {name} folder", where=str(path))
    if out.resolve().is_relative_to(resolved):
        raise refusal("E-DEID-KEY-PLACE", "the output folder lies inside the private folder", where=str(path))
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise refusal("E-DEID-KEY-MODE", "others may enter the private folder", where=str(path))
    return path


def _private_temporary(path: Path, content: bytes) -> Path:
    """A synced file beside ``path``; mkstemp makes it 0600 (``medmtl.files`` would widen it to the umask)."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".tmp")
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    return Path(name)


def _encoded(key: Key) -> bytes:
    tree = {"version": VERSION, "secret": key.secret.hex(), "sources": list(key.sources)}
    return (json.dumps(tree, indent=1) + "\n").encode()


def _load(path: Path) -> Key:
    try:
        found = path.stat()
        mode = stat.S_IMODE(found.st_mode)
        if not stat.S_ISREG(found.st_mode):
            raise refusal("E-DEID-KEY", "the key is not a regular file", where=str(path))
        if mode & 0o077:
            raise refusal("E-DEID-KEY-MODE", f"others may read the key (mode {mode:04o}, not 0600)", where=str(path))
        tree = json.loads(path.read_text(encoding="utf-8"))
        if tree["version"] != VERSION:
            raise refusal("E-DEID-KEY", f"the key is of version {tree['version']!r}, not {VERSION}", where=str(path))
        secret = bytes.fromhex(tree["secret"])
        sources = tuple(str(source) for source in tree["sources"])
    except UserError:
        raise
    except OSError as error:
        raise refusal("E-DEID-KEY", f"the key cannot be read ({error.strerror})", where=str(path)) from error
    except (ValueError, TypeError, KeyError, AttributeError):
        raise refusal("E-DEID-KEY", "the key file is damaged", where=str(path)) from None  # the cause would quote it
    if len(secret) != SECRET_BYTES or len(set(secret)) < 8:
        raise refusal("E-DEID-KEY", f"the secret is not {SECRET_BYTES} random bytes", where=str(path))
    return Key(secret, sources)
