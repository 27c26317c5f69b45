"""Laws of what a row says: what its reader can do is said to who predicts, and nothing is left out unsaid."""

import csv
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from jobs_made import GRADE, made_bundle
from PIL import Image
from rich.console import Console

from medmtl.cli.app import app
from medmtl.errors import UserError
from medmtl.inference.job import Job
from medmtl.inference.pipeline import predict
from medmtl.inference.remedies import REMEDY, remedy
from medmtl.io.raster import write_png
from medmtl.io.reasons import REMEDY as READING

TRAINER = re.compile(r"\b(study's|in a study|every image of|its row|the row|ingest(ed)?|preprocess\.|video)\b")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_bundle(tmp_path_factory.mktemp("bundle"), GRADE, {"channels": 3, "window": [32, 32]})


def _rows(bundle: Path, root: Path, table: str) -> dict[str, dict[str, str]]:
    predict(Job(bundle, root / "in", root / "out", device="cpu"), console=Console(file=io.StringIO()))
    with (root / "out" / table).open(newline="", encoding="utf-8") as stream:
        return {row["image"]: row for row in csv.DictReader(stream)}


def _pixels(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_remedies_are_for_who_predicts(bundle: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    whole = write_png(source / "grey.png", _pixels(0, 40, 40)).read_bytes()
    write_png(source / "small.png", _pixels(1, 8, 8, 3))
    (source / "cut.png").write_bytes(whole[: len(whole) // 2])
    (source / "empty.png").write_bytes(b"")
    (source / "none.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40)
    rows = _rows(bundle, tmp_path, "errors.csv")
    codes = {"grey": "COLOUR", "small": "SMALL", "cut": "DAMAGED", "none": "FORMAT"}
    assert {name: row["code"] for name, row in rows.items()} == {
        **{f"{name}.png": f"E-IMG-{code}" for name, code in codes.items()},
        "empty.png": "E-FILE-EMPTY",
    }
    for row in rows.values():
        assert row["remedy"] == REMEDY[row["code"]]


def test_no_remedy_speaks_to_a_trainer_or_names_an_option_of_another_command() -> None:
    command = typer.main.get_command(app).commands["predict"]  # type: ignore[attr-defined]
    options = {name for parameter in command.params for name in parameter.opts}
    reached = {code for code in READING if code.startswith(("E-FILE-", "E-DCM-", "E-NII-", "E-SEC-"))}
    reached |= {"E-ING-TIMEOUT", "E-ING-WORKER", "E-ING-MEMORY", "E-ING-NAN", "E-ING-EMPTY", *REMEDY}
    for code in sorted(reached):
        text = remedy(UserError(code, "", READING.get(code, "")))
        assert text and not TRAINER.search(text), (code, text)
        assert set(re.findall(r"--[a-z-]+", text)) <= options, (code, text)


def test_images_beside_the_first_of_a_file_are_told_of(bundle: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    forms = {"one.png": ("PNG", 1), "moving.png": ("PNG", 3), "two.jpg": ("MPO", 2), "pages.tif": ("TIFF", 3)}
    for name, (form, count) in forms.items():
        first, *more = [Image.fromarray(_pixels(n, 40, 40, 3)) for n in range(count)]
        first.save(source / name, format=form, save_all=True, append_images=more)
    rows = _rows(bundle, tmp_path, "predictions.csv")
    said = {
        name: "".join(re.findall(r"W-PRE-FRAMES the file holds (\d)", row["warnings"])) for name, row in rows.items()
    }
    pages = dict.fromkeys(("pages.tif#0", "pages.tif#1", "pages.tif#2"), "")
    assert said == {"moving.png": "3", "two.jpg": "2", "one.png": "", **pages}
