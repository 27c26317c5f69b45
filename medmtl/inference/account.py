"""The account of a job: tables, a page for people, a manifest for programs; every input is in each of them once."""

import csv
import io
import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL
import torch

from medmtl import __version__
from medmtl.config import plain
from medmtl.errors import NOTHING, OK, PARTIAL
from medmtl.files import write_atomic
from medmtl.inference.folder import ERRORS, INDEX, MANIFEST, PREDICTIONS, SOURCES, SUMMARY
from medmtl.inference.inputs import Listing
from medmtl.inference.job import Job, Summary
from medmtl.inference.ledger import Entry
from medmtl.inference.work import Work
from medmtl.inference.writers.overlay import colour
from medmtl.inference.writers.report import write_index
from medmtl.inference.writers.table import cell, columns, write_errors, write_predictions
from medmtl.io.deidentify.key import write_private
from medmtl.outfolder import LEDGER
from medmtl.tasks.segmentation import Segmentation

USE = "research use only, not a medical device"
_SHOWN = 20  # rows of a list in the summary


@dataclass(frozen=True)
class Account:
    """What an account is made of."""

    job: Job
    work: Work
    listing: Listing
    settings: str
    seconds: Mapping[str, float]


def write_account(account: Account) -> Summary:
    """Write ``predictions.csv``, ``errors.csv``, ``sources.private.csv``, ``summary.md`` and ``manifest.json``."""
    job, work = account.job, account.work
    entries = [work.ledger.entries[item.id] for item in account.listing.inputs if item.id in work.ledger.entries]
    preprocess = work.model.spec.preprocess
    header = columns(work.tasks, volumes=preprocess.volume is not None, bundles=len(work.model.members))
    write_predictions(job.out / PREDICTIONS, entries, header)
    write_errors(job.out / ERRORS, entries)
    write_private(job.out / SOURCES, _sources(account.listing))
    if "html" in job.output.formats:
        write_index(job.out / INDEX, entries, work.tasks, bundle=work.ledger.bundle)
    summary = _summary(account, entries)
    tree = _manifest(account, summary, entries)
    write_atomic(job.out / SUMMARY, _page(tree, entries))
    write_atomic(job.out / MANIFEST, json.dumps(tree, indent=1) + "\n")
    return summary


def share_of(account: Account) -> Summary:
    """How the share of one of several processes ended: what has no result is told by the first, when all have ended."""
    shard = account.job.shard
    mine = account.work.plan(account.listing.inputs)[shard.rank :: shard.world]
    entries = account.work.ledger.entries
    return replace(_summary(account, [entries[item.id] for batch in mine for item in batch.inputs]), exit_code=OK)


def refers(entry: Entry) -> bool:
    """Whether a reader should look at an input: it has no result, or one that its gate or its rule doubts."""
    return entry.status != "ok" or entry.cells.get("refer_to_reader") == "true"


def _summary(account: Account, entries: Sequence[Entry]) -> Summary:
    count = Counter(entry.status for entry in entries)
    code = NOTHING if not count["ok"] else PARTIAL if count["ok"] < len(entries) else OK
    ignored = account.listing.ignored
    files = {
        "ledger": LEDGER,
        "predictions": PREDICTIONS,
        "errors": ERRORS,
        "summary": SUMMARY,
        "manifest": MANIFEST,
        "sources": SOURCES,
    }
    ok = {entry.id for entry in entries if entry.status == "ok"}
    return Summary(
        total=len(entries),
        ok=count["ok"],
        failed=count["failed"],
        skipped=count["skipped"],
        resumed=len(ok - account.work.computed),
        referred=sum(refers(entry) for entry in entries),
        ignored=sum(ignored.values()),
        ignored_kinds=ignored,
        exit_code=code,
        paths={name: account.job.out / file for name, file in files.items()},
    )


def _manifest(account: Account, summary: Summary, entries: Sequence[Entry]) -> dict[str, Any]:
    job, work, listing = account.job, account.work, account.listing
    model = work.model
    colours = {
        name: {label: "#{:02x}{:02x}{:02x}".format(*colour(k)) for k, label in enumerate(task.classes) if k}
        for name, task in work.tasks.items()
        if isinstance(task, Segmentation)
    }
    counted = ("total", "ok", "failed", "skipped", "resumed", "referred")
    return {
        "use": USE,
        "bundles": list(model.ids),
        "settings": account.settings,
        "views": job.views or model.spec.views,
        "output": plain(job.output),
        "gate": job.gate,
        "device": str(model.members[0].device),
        "batch_size": job.batch_size,
        "processes": job.shard.world,
        "max_ram_bytes": work.budget,
        "counts": {name: getattr(summary, name) for name in counted},
        "files": {"seen": listing.files, "ignored": dict(listing.ignored)},
        "exit_code": summary.exit_code,
        "seconds": {name: round(value, 3) for name, value in account.seconds.items()},
        "seconds_per_image": model.cost(),
        "batches_halved": model.halved,
        "colours": colours,
        "versions": {
            "medmtl": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "pillow": PIL.__version__,
        },
        "inputs": {entry.id: entry.code or entry.status for entry in entries},
    }


def _page(tree: Mapping[str, Any], entries: Sequence[Entry]) -> str:
    """The summary as Markdown."""
    counts = tree["counts"]
    lines = [
        "# Predictions",
        "",
        f"{tree['use'].capitalize()}.",
        "",
        f"{counts['ok']} of {counts['total']} inputs have a result, {counts['failed']} failed, "
        f"{counts['skipped']} were not tried; {counts['referred']} should be looked at by a reader.",
        "",
        f"Bundle {', '.join(tree['bundles'])}; views {tree['views']}; gate {tree['gate']}; device {tree['device']}; "
        f"medmtl {tree['versions']['medmtl']}.",
    ]
    codes = Counter(entry.code for entry in entries if entry.status != "ok")
    if codes:
        remedies = {entry.code: entry.remedy for entry in entries if entry.code}
        lines += ["", "## Without a result", "", "| code | inputs | what to do |", "|---|---|---|"]
        lines += [f"| {code} | {count} | {_plain(remedies[code])} |" for code, count in codes.most_common()]
        lines += ["", f"Each with its reason in {ERRORS}."]
    doubted = [entry for entry in entries if entry.status == "ok" and refers(entry)]
    if doubted:
        lines += ["", "## To be looked at", "", "| input | reason |", "|---|---|"]
        lines += [f"| {_plain(entry.id)} | {_plain(str(entry.cells['refer.reason']))} |" for entry in doubted[:_SHOWN]]
        lines += [f"| and {len(doubted) - _SHOWN} more | see {PREDICTIONS} |"] if len(doubted) > _SHOWN else []
    if tree["files"]["ignored"]:
        aside = ", ".join(f"{count} {_plain(kind)}" for kind, count in tree["files"]["ignored"].items())
        lines += ["", f"Left aside: {aside}."]
    spent = ", ".join(f"{name} {value:.1f} s" for name, value in tree["seconds"].items())
    lines += ["", f"Time: {spent}.", ""]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, in one cell."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return "".join(f"\\{c}" if c in "\\|`*_[]<>#" else c for c in shown)


def _sources(listing: Listing) -> str:
    """Which files each input is made of."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["image", "name", "file"])
    for item in listing.inputs:
        writer.writerows([cell(item.id), cell(item.name), cell(found.path)] for found in item.files)
    return stream.getvalue().encode("utf-8", "backslashreplace").decode()
