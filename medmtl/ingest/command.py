"""The command line's side of a job: options that are more than a word, and what is said at the end."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from medmtl.errors import UserError
from medmtl.ingest.job import LabelRule, Summary

_SHOWN = 8  # codes
_MOST_LABELS = 100_000  # of one range
_EXAMPLE = r"write --mask 'lesion=images/(.+)\.nii\.gz -> labels/\1.nii.gz'"


def label_rule(table: Path | None, key: str, match: str, targets: str) -> LabelRule | None:
    """The options of a label table as one; None without a table."""
    if table is None:
        if key or targets:
            raise UserError("E-ING-JOB", "--label-key or --targets without --labels", "give the table", where="ingest")
        return None
    if not key:
        raise UserError("E-ING-JOB", "--labels without --label-key", "name the column of the key", where="ingest")
    columns = tuple(column.strip() for column in targets.split(",") if column.strip())
    return LabelRule(table, key, match, columns)


def mask_rules(options: Iterable[str]) -> Mapping[str, str]:
    """``name=PATTERN -> REPLACEMENT`` by name, checked."""
    rules: dict[str, str] = {}
    for option in options:
        name, _, rule = option.partition("=")
        pattern, arrow, _ = rule.partition("->")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or not arrow or name in rules:
            raise UserError("E-ING-RULE", f"{option!r} is no rule for masks", _EXAMPLE, where="--mask")
        try:
            re.compile(pattern.strip())
        except re.error as error:
            raise UserError("E-ING-RULE", f"{option!r}: {error}", _EXAMPLE, where="--mask") from error
        rules[name] = rule.strip()
    return rules


def label_values(options: Iterable[str]) -> Mapping[str, tuple[int, ...]]:
    """``name=0,1,2`` or ``name=0-40`` by name, checked."""
    found: dict[str, tuple[int, ...]] = {}
    for option in options:
        name, _, text = option.partition("=")
        parts = [re.fullmatch(r"\s*(\d{1,9})(?:\s*-\s*(\d{1,9}))?\s*", part) for part in text.split(",")]
        ends = [(int(part[1]), int(part[2] or part[1])) for part in parts if part]
        if (
            not name
            or name in found
            or len(ends) < len(parts)
            or any(b - a not in range(_MOST_LABELS) for a, b in ends)
        ):
            raise UserError(
                "E-ING-RULE", f"{option!r} declares no labels", "write --mask-values lesion=0,1,2 or organs=0-40",
                where="--mask-values",
            )  # fmt: skip
        found[name] = tuple(sorted({label for first, last in ends for label in range(first, last + 1)}))
    return found


def told(summary: Summary, *, as_json: bool) -> Iterator[str]:
    """What a job says at its end: counts, warnings, the most frequent refusals, and where to look."""
    if as_json:
        tree = {**asdict(summary), "paths": {name: str(path) for name, path in summary.paths.items()}}
        yield json.dumps(tree)
        return
    files, volumes = summary.files, summary.volumes
    yield (
        f"{sum(files.values())} files: " + ", ".join(f"{count} {status}" for status, count in files.items()) + "; "
        f"{volumes['ok']} images" + (f" ({summary.resumed} of an earlier run)" if summary.resumed else "")
    )
    yield from summary.warnings
    refused = sorted(((n, code) for code, n in summary.codes.items() if code.startswith("E-")), reverse=True)
    if refused:
        yield "refused: " + ", ".join(f"{code} {n}" for n, code in refused[:_SHOWN])
    yield f"report: {summary.paths['page']}"
    if summary.volumes["ok"]:
        yield f"manifest: {summary.paths['manifest']}; real paths: {summary.paths['private']}"
