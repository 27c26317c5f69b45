"""Workers are forked with little, and decode everything all the same."""

import hashlib
import json
import subprocess
import sys

from medmtl.data.synthetic.dicom import write_phantom
from medmtl.io.dicom.header import read_header
from medmtl.io.dicom.load import load
from medmtl.io.dicom.series import Policy, plan

PROGRAM = """
import hashlib, json, sys
from pathlib import Path
import medmtl.ingest.preload
from medmtl.io.dicom.header import read_header
from medmtl.io.dicom.load import load
from medmtl.io.dicom.series import Policy, plan
heavy = ("requests", "scipy", "tqdm", "_gdcm")
seen = [sorted(set(heavy) & set(sys.modules))]
for folder in sys.argv[1:]:
    (stack,) = plan([read_header(path) for path in sorted(Path(folder).rglob("*")) if path.is_file()], Policy()).volumes
    seen.append(hashlib.sha256(load(stack).array.tobytes("F")).hexdigest())
    seen.append(sorted(set(heavy) & set(sys.modules)))
import requests, scipy, gdcm
seen.append([requests.__name__, scipy.__name__, gdcm.ImageReader.__name__])
print(json.dumps(seen))
"""


def _digest(folder):
    (stack,) = plan([read_header(path) for path in folder.rglob("*") if path.is_file()], Policy()).volumes
    return hashlib.sha256(load(stack).array.tobytes("F")).hexdigest()


def test_what_is_not_needed_is_not_imported_until_it_is(tmp_path):
    for kind in ("axial", "jpeg-lossless"):
        write_phantom(tmp_path / kind, kind)
    folders = [tmp_path / "axial", tmp_path / "jpeg-lossless"]
    command = [sys.executable, "-c", PROGRAM, *map(str, folders)]
    seen = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    native, lossless = (_digest(folder) for folder in folders)
    assert seen == [[], native, [], lossless, ["_gdcm"], ["requests", "scipy", "ImageReader"]]
