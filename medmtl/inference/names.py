"""Names for output files: those of the inputs, made safe for any file system, and told apart."""

import hashlib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping

_REFUSED = '<>:"|?*\\'
_LONGEST = 120  # bytes of one part of a path: writers add suffixes, and a temporary name is longer still
_WRITTEN = (".png", ".nii", ".gz", ".dcm", ".json", ".html")
_RESERVED = {"con", "prn", "aux", "nul", *(f"{name}{n}" for name in ("com", "lpt") for n in range(10))}


Taken = Callable[[str, str], bool]  # of an id and a name: whether files of another id lie under that name


def free(key: str, name: str) -> bool:
    """Of a new folder: no name is taken."""
    return False


def output_names(stems: Mapping[str, str], taken: Taken = free) -> dict[str, str]:
    """Names by input id, from what each would be called (relative, with ``/``).

    A name of which any part had to be changed, every one of several that a file system which ignores case or
    composition would take for one, and one that is ``taken``, ends in ``~`` and eight digits of its id's hash; so none
    depends on the order of the others.
    """
    safe = {key: _path(stem) for key, stem in stems.items()}
    alike: dict[str, list[str]] = defaultdict(list)
    for key, name in safe.items():
        alike[folded(name)].append(key)
    named = {}
    for keys in alike.values():
        for key in keys:
            plain = safe[key] == stems[key] and len(keys) == 1 and not taken(key, safe[key])
            named[key] = safe[key] if plain else f"{safe[key]}~{_digits(key)}"
    return named


def folded(name: str) -> str:
    """The same for all names that a file system which ignores case or composition would take for one."""
    return unicodedata.normalize("NFC", name).casefold()


def name_of(output: str) -> str:
    """The name that an output file was written under: ``cases/<name>/file`` or ``<folder>/<task>/<name>.png``."""
    top, _, rest = output.partition("/")
    return rest.rpartition("/")[0] if top == "cases" else rest.partition("/")[2].removesuffix(".png") or output


def _path(stem: str) -> str:
    *folders, last = stem.split("/")
    return "/".join([*(_folder(part) for part in folders), _safe(last)])


def _folder(part: str) -> str:
    """A folder's name; never one that a file of ours could have, so that no folder stands where a file must."""
    safe = _safe(part)
    return f"{safe}_" if safe.lower().endswith(_WRITTEN) else safe


def _safe(part: str) -> str:
    """A part of a path without control characters, broken bytes and what some systems refuse, of limited length."""
    text = unicodedata.normalize("NFC", os.fsencode(part).decode("utf-8", "replace"))
    text = "".join("_" if c in _REFUSED or not (c.isprintable() or c == " ") or c == "\ufffd" else c for c in text)
    text = text.strip(" ").rstrip(".")
    text = "_" + text if not text or text.startswith(".") or text.partition(".")[0].lower() in _RESERVED else text
    encoded = text.encode()
    return text if len(encoded) <= _LONGEST else encoded[:_LONGEST].decode(errors="ignore").rstrip(" .")


def _digits(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:8]
