"""What workers are forked with, without what they never use: imported by the fork server alone.

pydicom imports an HTTP client to fetch test files and gdcm, whose wrapper takes longer than pydicom itself; nibabel
imports scipy for one of its formats. Together they are half of the time that a small folder takes. Nothing is fetched
here, and gdcm is imported when a frame has to be decoded by it.
"""

import contextlib
import importlib
import sys
from importlib import metadata
from types import ModuleType, SimpleNamespace
from typing import Any

_UNUSED = ("requests", "scipy", "tqdm")  # libraries do without them where they cannot be imported
_GDCM = "gdcm"
_NEEDED = ("medmtl.ingest.headers", "medmtl.ingest.work")


class _Later(ModuleType):
    """gdcm, imported when more than its version is asked for, which pydicom does as it is imported itself."""

    def __init__(self, version: str) -> None:
        super().__init__(_GDCM)
        self.Version = SimpleNamespace(GetVersion=lambda: version)
        self.wanted = False  # until everything is imported: pydicom's superseded handlers ask for more, and do without

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not self.wanted:
            raise AttributeError(name)
        if sys.modules.get(_GDCM) is self:
            del sys.modules[_GDCM]
        return getattr(importlib.import_module(_GDCM), name)


def _preload() -> None:
    stand_ins: dict[str, Any] = dict.fromkeys(_UNUSED)  # None: importing it raises ImportError
    with contextlib.suppress(metadata.PackageNotFoundError):
        stand_ins[_GDCM] = _Later(metadata.version("python-gdcm"))
    stand_ins = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        for name in _NEEDED:
            importlib.import_module(name)
    finally:
        for name in _UNUSED:
            if name in stand_ins:
                del sys.modules[name]
        if _GDCM in stand_ins:
            stand_ins[_GDCM].wanted = True


_preload()
