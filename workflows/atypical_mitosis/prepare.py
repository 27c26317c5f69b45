"""AMi-Br or the MIDOG 2025 atypical training set -> ``manifest.csv``.

    python -m workflows.atypical_mitosis.prepare SOURCE OUT [--layout auto] [--masks haematoxylin]

``SOURCE`` has one of the layouts that ``sources.py`` describes: AMi-Br as cloned or with an index, or MIDOG25.

**Leak.** MIDOG25 "human breast cancer" (1,721 figures) *is* the MIDOG21 part of AMi-Br. Never train on one and test on
the other. Its slides get the same ``group`` here (``MIDOG21_002``), so a split by group over both manifests is safe.

``OUT`` gets ``manifest.csv``, ``images/`` (hard links to the patches, or copies: do not edit them in place), ``masks/``
and ``prepare_report.csv``, which accounts for every row of the source. Run again it changes nothing; interrupted it
goes on.
"""

import csv
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from medmtl.data.case import Case, write_manifest
from medmtl.errors import EnvironmentFailure, NothingUsable, UserError
from medmtl.files import atomic_path, write_atomic
from medmtl.io.raster import read_image
from workflows.atypical_mitosis.nucleus import Haematoxylin, MaskProvider, UserMasks, cached_mask
from workflows.atypical_mitosis.sources import Figure, Layout, Source, UnusableRowError, open_source

LEAK = (
    'MIDOG25 "human breast cancer" holds the same figures as the MIDOG21 part of AMi-Br: '
    "never train on one and test on the other (their slides share the column group)"
)


@dataclass
class Report:
    """What became of every source row."""

    lines: list[tuple[int, str, str, str, str]] = field(default_factory=list)  # row, case, status, reason, nucleus

    def used(self, row: int, case_id: str, nucleus: str) -> None:
        self.lines.append((row, case_id, "used", "", nucleus))

    def left_out(self, row: int, case_id: str, reason: str) -> None:
        self.lines.append((row, case_id, "left out", reason, ""))

    def count(self, status: str) -> int:
        return sum(line[2] == status for line in self.lines)

    def write(self, path: Path) -> None:
        with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(("source_row", "case_id", "status", "reason", "nucleus"))
            writer.writerows(sorted(self.lines))


def prepare(
    source: Path,
    out: Path,
    *,
    layout: Layout = Layout.AUTO,
    masks: MaskProvider | None = None,
    min_figures: int = 1,
    console: Console | None = None,
) -> Report:
    """Write ``out/manifest.csv`` and what it needs; see the module's docstring.

    Slides with fewer usable figures than ``min_figures`` are left out. Raises UserError where the source is not
    understood, NothingUsable where no row is usable.
    """
    data, report, cases = open_source(source, layout), Report(), []
    console = console or Console(quiet=True)
    placed = []
    for row, figure in track(list(_figures(data, report)), description="Reading patches", console=console):
        try:
            placed.append((row, figure, _place(figure, out / "images")))
        except EnvironmentFailure:
            raise
        except UserError as error:
            report.left_out(row, figure.case_id, f"{error.what} ({error.code})")
    slides = Counter(figure.group for _, figure, _ in placed)
    for row, figure, image in track(placed, description="Writing cases", console=console):
        if slides[figure.group] < min_figures:
            report.left_out(row, figure.case_id, f"its slide has fewer than {min_figures} usable figures")
            continue
        mask, note = cached_mask(masks, out / "masks", figure.case_id, image) if masks else (None, "no provider")
        report.used(row, figure.case_id, "mask" if mask else note)
        cases.append(_case(figure, image, mask, masks, out))
    report.write(out / "prepare_report.csv")
    if not cases:
        raise NothingUsable(
            "E-PREP-NONE", f"none of {len(report.lines)} rows is usable", "see prepare_report.csv", where=data.name
        )
    write_manifest(out / "manifest.csv", cases)
    return report


def _figures(data: Source, report: Report) -> Iterator[tuple[int, Figure]]:
    """The rows that can be understood; the others go to the report."""
    seen: set[str] = set()
    for number, row in data.rows:
        name = row.get("patch_id") or row.get("image_id") or f"{row.get('dataset')}_{row.get('uid')}"
        try:
            figure = data.read(row)
            _check(figure, seen)
        except (UnusableRowError, UserError) as error:
            report.left_out(number, name, error.what if isinstance(error, UserError) else str(error))
        except KeyError as error:
            raise UserError("E-PREP-COLUMN", f"no column {error}", "restore the table", where=data.name) from error
        else:
            seen.add(figure.case_id.casefold())
            yield number, figure


def _check(figure: Figure, seen: set[str]) -> None:
    if figure.case_id.casefold() in seen:
        raise UnusableRowError("the same patch is in an earlier row")
    if not figure.label:
        raise UnusableRowError("no majority label")
    given = [vote for vote in figure.votes if vote]
    majority = {"normal": len(given) - given.count("atypical"), "atypical": given.count("atypical")}
    if given and majority[figure.label] * 2 < len(given):
        raise UnusableRowError(f"the label {figure.label!r} contradicts the experts' votes")


def _place(figure: Figure, folder: Path) -> Path:
    """The patch as ``folder/<case_id>.<suffix>``, linked or copied, and known to be a readable RGB image."""
    source = figure.patch.resolve()
    path = folder / f"{figure.case_id}{source.suffix.lower()}"
    read_image(source, channels=3)
    if path.is_file() and (path.samefile(source) or path.read_bytes() == source.read_bytes()):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    linked = path.with_name(f".{path.name}.tmp{path.suffix}")
    linked.unlink(missing_ok=True)
    try:
        os.link(source, linked)
        linked.replace(path)
    except OSError:  # another disk, or a file system without links
        write_atomic(path, source.read_bytes())
    return path


def _case(figure: Figure, image: Path, mask: Path | None, provider: MaskProvider | None, out: Path) -> Case:
    given = {vote for vote in figure.votes if vote}
    targets, meta = figure.targets(), dict(figure.meta) | {"unanimous": "1" if len(given) == 1 else "0"}
    if mask is not None and provider is not None:
        targets["nucleus"] = mask.relative_to(out).as_posix()
        meta["nucleus_provider"] = f"{provider.name}-{provider.digest}"
    relative = image.relative_to(out).as_posix()
    return Case(figure.case_id, figure.group, relative, figure.domain, figure.split, targets, meta)


def _provider(masks: str, um_per_px: float) -> MaskProvider | None:
    if masks == "none":
        return None
    if masks == Haematoxylin.name:
        return Haematoxylin(um_per_px=um_per_px)
    if not Path(masks).is_dir():
        raise UserError("E-PREP-MASKS", f"no such folder: {masks}", "give a folder, 'haematoxylin' or 'none'")
    return UserMasks(Path(masks))


def main(
    source: Annotated[Path, typer.Argument(help="Folder of AMi-Br or of the MIDOG 2025 atypical training set.")],
    out: Annotated[Path, typer.Argument(help="Folder to write manifest.csv, images and masks to.")],
    layout: Annotated[Layout, typer.Option(help="How SOURCE is laid out.")] = Layout.AUTO,
    masks: Annotated[str, typer.Option(help="'haematoxylin', 'none', or a folder of <case_id>.png.")] = "haematoxylin",
    um_per_px: Annotated[float, typer.Option(help="Pixel size of the patches, for 'haematoxylin'.")] = 0.25,
    min_figures: Annotated[int, typer.Option(min=1, help="Leave out slides with fewer usable figures.")] = 1,
) -> None:
    """Turn AMi-Br or the MIDOG 2025 atypical training set into a manifest."""
    console = Console(stderr=True)
    try:
        report = prepare(
            source, out, layout=layout, masks=_provider(masks, um_per_px), min_figures=min_figures, console=console
        )
    except UserError as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        raise typer.Exit(error.exit_code) from error
    for line in summary(report):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"{out / 'manifest.csv'}", markup=False, soft_wrap=True)


def summary(report: Report) -> list[str]:
    """What a user reads at the end: how many rows are used, why the others are not, and the warning of the leak."""
    reasons = Counter(reason for _, _, status, reason, _ in report.lines if status == "left out")
    nuclei = Counter(nucleus for _, _, status, _, nucleus in report.lines if status == "used")
    return [
        f"{report.count('used')} of {len(report.lines)} rows are cases, {report.count('left out')} are left out",
        *(f"  left out, {reason}: {count}" for reason, count in reasons.most_common(10)),
        f"{nuclei.pop('mask', 0)} nucleus masks",
        *(f"  no mask, {reason}: {count}" for reason, count in nuclei.most_common(10)),
        f"WARNING: {LEAK}.",
    ]


if __name__ == "__main__":
    typer.run(main)
