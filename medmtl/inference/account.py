"""The account of a job: tables, a page for people, a manifest for programs; every input is in each of them once.

Tables hold the inputs that are there and were dealt with. Manifest and page also tell of lines in the ledger whose
input is ``gone`` (removed, or changed so that it became another one), and of inputs that are ``pending``.
"""

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
from medmtl.inference.job import Job, Summary
from medmtl.inference.ledger import Entry
from medmtl.inference.listing import Listing
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

    @property
    def gone(self) -> dict[str, str]:
        """What became of inputs that are in the ledger and no longer in the source."""
        there = {item.id for item in self.listing.inputs}
        return {entry.id: entry.code or entry.status for entry in self._entries.values() if entry.id not in there}

    @property
    def pending(self) -> list[str]:
        """The inputs that were not dealt with yet."""
        return [item.id for item in self.listing.inputs if item.id not in self._entries]

    @property
    def _entries(self) -> Mapping[str, Entry]:
        return self.work.ledger.entries


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


def unsealed(ids: Sequence[str]) -> str:
    """What is to be said of bundles of format 1 that were written without a digest."""
    return f"nothing shows whether the specification of {', '.join(ids)} was edited, as it has no digest (spec_sha256)"


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
        "unsealed": list(model.unsealed),
        "settings": account.settings,
        "views": job.views or model.spec.views,
        "output": plain(job.output),
        "gate": job.gate,
        "fingerprint": work.known is not None,
        "device": str(model.members[0].device),
        "batch_size": job.batch_size,
        "processes": job.shard.world,
        "max_ram_bytes": work.budget,
        "counts": {name: getattr(summary, name) for name in counted},
        "files": {"seen": listing.files, "ignored": dict(listing.ignored)},
        "exit_code": summary.exit_code,
        "seconds": {name: round(value, 3) for name, value in account.seconds.items()},
        "views_per_image": model.views,
        "views_gain": model.gain,
        "seconds_per_image": model.cost(),
        "seconds_per_view": model.view_cost(),
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
        "gone": account.gone,
        "pending": account.pending,
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
    if tree["gate"] != "off" and not tree["fingerprint"]:
        lines += ["", "The bundle has no fingerprint of its training images, so no input was compared with them."]
    if tree["unsealed"]:
        lines += ["", f"{unsealed(tree['unsealed']).capitalize()}."]
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
    if tree["gone"]:
        results = sum(status == "ok" for status in tree["gone"].values())
        lines += [
            "",
            f"Not in the tables: {len(tree['gone'])} inputs of earlier runs that are no longer there or were changed, "
            f"{results} of them with results; {LEDGER} holds their rows, {MANIFEST} lists them, and their files stay.",
        ]
    if tree["pending"]:
        lines += ["", f"Not dealt with yet: {len(tree['pending'])} inputs; {MANIFEST} lists them."]
    spent = ", ".join(f"{name} {value:.1f} s" for name, value in tree["seconds"].items())
    lines += ["", f"Time: {spent}.", *_cost(tree), ""]
    return "\n".join(lines)


def _cost(tree: Mapping[str, Any]) -> list[str]:
    """What the network took, and what its views have to do with it; nothing where no image went through."""
    if not tree["seconds_per_image"]:
        return []
    whole, each = (sum(tree[name].values()) for name in ("seconds_per_image", "seconds_per_view"))
    count = tree["views_per_image"]
    if count == 1:
        return ["", f"The network took {whole:.3g} s an image, of one view."]
    cost = f"The network took {whole:.3g} s an image, {each:.3g} s for each of its {count} views."
    if tree["views_gain"] is not None:
        metric, one, all_ = tree["views_gain"]
        of = "" if len(tree["bundles"]) == 1 else " of the first bundle"
        return ["", f"{cost} On validation {metric}{of} was {one:.4g} with one view and {all_:.4g} with all of them."]
    return [
        "",
        f"{cost} Whether they are worth it is not known here, since it takes labels: run the study again with "
        "views=identity, evaluate both runs, and `medmtl compare` them.",
    ]


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
