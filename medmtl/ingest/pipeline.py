"""``medmtl ingest``: a folder of anything -> a study with every file accounted for.

Walk, read headers (once: they are kept beside the key), plan, make the volumes in worker processes, and write the
tables. The ledger is the only state; whatever kills a job, the next one ends with the same bytes. Neither torch nor
pandas is imported here: starting takes less time than one volume.
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from medmtl.data.case import write_manifest
from medmtl.errors import NOTHING, OK, PARTIAL, EnvironmentFailure, TrainingInterrupted
from medmtl.files import append_line
from medmtl.ingest import earlier
from medmtl.ingest.cases import CasePlan, PlannedCase, plan_cases
from medmtl.ingest.folder import MANIFEST, check_folders, held, own, tidy
from medmtl.ingest.job import Job, LabelRule, Summary
from medmtl.ingest.labels import Labels, LabelTable
from medmtl.ingest.ledger import Entry, Ledger
from medmtl.ingest.naming import Namer
from medmtl.ingest.pool import Lost, Pool
from medmtl.ingest.report import PAGE, REPORT, TABLE, rows_of, write_reports
from medmtl.ingest.rules import Rule
from medmtl.ingest.scan import Index, scan
from medmtl.ingest.scanned import Scanned
from medmtl.ingest.space import check_space
from medmtl.ingest.study import check_targets, manifest_case, warnings_of, write_crosswalk
from medmtl.ingest.tasks import Made, Task, make
from medmtl.ingest.walk import Found, walk
from medmtl.io.deidentify.key import load_or_make_key, private_folder, remember_source
from medmtl.io.deidentify.pseudonyms import Pseudonyms
from medmtl.io.reasons import REMEDY
from medmtl.outfolder import LEDGER
from medmtl.progress import Progress
from medmtl.signals import signals

__all__ = ["Job", "LabelRule", "Summary", "ingest"]

_ALWAYS = ("IssuerOfPatientID",)  # two patients of two hospitals may share a number
_LOST = {"died": "E-ING-WORKER", "timeout": "E-ING-TIMEOUT", "raised": "E-ING-BUG"}
_LOST_WHAT = {"died": "the process that read it died", "timeout": "it took too long", "raised": "a defect"}


@dataclass
class _Run:
    """A job while it runs."""

    job: Job
    private: Path
    namer: Namer
    table: LabelTable | None
    keywords: tuple[str, ...]  # DICOM keywords that rules need, beyond those of every header
    ledger: Ledger
    pool: Pool
    progress: Progress
    caught: Sequence[int]
    seconds: dict[str, float] = field(default_factory=dict)

    def stop_if_asked(self) -> None:
        if self.caught:
            raise TrainingInterrupted(self.caught[0])


def ingest(job: Job, *, console: Console | None = None) -> Summary:
    """Make a study of ``job.source``, or what an earlier run of the same job left undone.

    Writes ``images/``, ``thumbnails/``, ``masks/``, ``manifest.csv``, ``cases.jsonl``, ``ingest_report.csv``, ``.html``
    and, last, ``.json``; and into the private folder the key, the index of headers, ``files.csv``, ``crosswalk.csv``.

    Raises TrainingInterrupted after SIGINT or SIGTERM (the volumes at hand are finished first), ``E-ING-OUT`` when the
    output folder belongs to something else, ``E-ING-LOCK`` when another job is writing there, and EnvironmentFailure
    when the disk fails, or has not the room for what is to be written.
    """
    began = time.monotonic()
    console = console or Console(stderr=True)
    check_folders(job)
    group, domain, alone = (
        Rule(text, name) if text else None
        for text, name in ((job.group, "--group"), (job.domain, "--domain"), (job.one_patient, "--one-patient"))
    )
    table = LabelTable.read(job.labels) if job.labels else None
    private = private_folder(job.private_folder, out=job.out, source=job.source)
    key_path = job.key or private / "key.json"
    with held(job.out, private), signals("volumes at hand") as caught:
        load_or_make_key(key_path, out=job.out)
        needed = {*_ALWAYS, *(name for rule in (domain, alone, table and table.rule) if rule for name in rule.keywords)}
        namer = Namer(Pseudonyms(remember_source(key_path, job.source)), job.keep_names, group, domain)
        own(job, namer.pseudonyms)
        tidy(job.out)
        ledger = Ledger(job.out / LEDGER)
        pool = Pool(job.processes, job.timeout_s, _memory(), private / "log.txt")
        with pool, Progress(console, failed="refused") as progress:
            run = _Run(job, private, namer, table, tuple(sorted(needed)), ledger, pool, progress, caught)
            summary = _ingest(run)
    return replace(summary, seconds={**run.seconds, "total": time.monotonic() - began})


def _ingest(run: _Run) -> Summary:
    job = run.job
    walked = earlier.left_aside(job.source, walk(job.source), whole_studies=True)
    scanned, read = _scan(run, walked.files)
    began = time.monotonic()
    plan = plan_cases(scanned, job, run.namer)
    check_targets(plan.cases, run.table)
    run.seconds["plan"] = time.monotonic() - began
    run.stop_if_asked()
    (job.out / REPORT).unlink(missing_ok=True)  # it says that everything else is complete
    entries, resumed = ({}, 0) if job.dry_run else _work(run, plan)
    done = [case for case in plan.cases if (entry := entries.get(case.id)) and entry.status == "ok"]
    labels = None
    if run.table is not None:
        labelled = done if not job.dry_run else [case for case in plan.cases if case.refused is None]
        labels = run.table.join({case.id: case.subject for case in labelled}, identifying=job.keep_names)
    left = earlier.told(sum(aside.kind == earlier.KIND for aside in walked.asides))
    said = (left, *plan.warnings, *warnings_of(plan.cases), *(labels.warnings if labels else ()))
    warnings = tuple(text for text in said if text)
    if not job.dry_run:
        targets = labels.targets if labels else {}
        rows = (manifest_case(case, entries[case.id], targets.get(case.id, {}), run.namer) for case in done)
        write_manifest(job.out / MANIFEST, rows)
        write_crosswalk(run.private / "crosswalk.csv", plan.cases)
    settings = {
        "dry_run": job.dry_run,
        "keep_names": job.keep_names,
        "domain": job.domain or "manufacturer and model",
        "allow_burned_in": job.allow_burned_in,
    }
    tree = write_reports(
        job.out,
        run.private,
        rows_of(plan, walked.asides, entries, planned=job.dry_run),
        plan,
        entries,
        namer=run.namer,
        warnings=warnings,
        settings=settings,
    )
    return _summary(run, tree, labels, read=read, resumed=resumed)


def _scan(run: _Run, files: Sequence[Found]) -> tuple[list[Scanned], int]:
    """What every file is, and how many of them were read now."""
    began = time.monotonic()
    root, max_bytes = run.job.source.resolve(), run.job.policy.max_bytes
    index = Index(run.private / "index.jsonl", root=root, keywords=run.keywords, max_bytes=max_bytes)
    run.progress.begin("files", len(files))
    found, read = scan(
        files,
        index,
        run.pool,
        advance=run.progress.advance,
        stopped=lambda: bool(run.caught),
    )
    run.stop_if_asked()
    index.keep_only(files)
    run.seconds["scan"] = time.monotonic() - began
    return list(found.values()), read


def _work(run: _Run, plan: CasePlan) -> tuple[dict[str, Entry], int]:
    """Make what is not made yet: the entry of every case that was tried, and how many were taken from earlier runs."""
    began = time.monotonic()
    job, ledger = run.job, run.ledger
    _withdraw(ledger, plan)
    wanted = [case for case in plan.cases if case.refused is None]
    entries = {case.id: entry for case in wanted if (entry := ledger.done(case.id, case.signature)) is not None}
    resumed = sum(entry.status == "ok" for entry in entries.values())
    failed = sum(entry.status == "failed" for entry in entries.values())
    allowed = job.failures_allowed(len(wanted))
    broken: list[EnvironmentFailure] = []
    run.progress.begin("volumes", len(wanted), len(entries))
    left = [case for case in wanted if case.id not in entries]
    check_space(job.out, left, uncompressed=job.uncompressed)
    tasks = [_task(job, case) for case in left]
    tasks.sort(key=lambda task: -sum(file.size for file in task.case.files))  # the longest first: none is left for last

    def stopped() -> bool:
        return bool(run.caught or broken) or failed > allowed

    for task, result in run.pool.map(make, tasks, stopped=stopped):
        made = _lost(run, task.case, result) if isinstance(result, Lost) else result
        if made.entry is None:
            broken += [made.failure] if made.failure else []
            continue
        ledger.append(made.entry)
        entries[task.case.id] = made.entry
        failed += made.entry.status == "failed"
        run.progress.advance(1, made.entry.status == "failed")
    run.seconds["work"] = time.monotonic() - began
    if broken:
        raise broken[0]
    run.stop_if_asked()
    return entries, resumed


def _withdraw(ledger: Ledger, plan: CasePlan) -> None:
    """Remove the images of cases that an earlier run was allowed to make and this one is not."""
    for case in plan.cases:
        before = ledger.entries.get(case.id)
        if case.refused is not None and before is not None and before.outputs:
            code, what = case.refused
            ledger.append(Entry(case.id, case.signature, "failed", code, what, REMEDY[code]))


def _memory() -> int | None:
    """What one worker may claim: all that the machine has, where the system can limit it."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if sys.platform == "linux" else None


def _task(job: Job, case: PlannedCase) -> Task:
    return Task(
        case,
        job.source.resolve(),
        job.out.resolve(),
        job.keep_names,
        job.fill_nan,
        job.policy.max_bytes,
        {target: job.mask_values[target] for target in case.masks if target in job.mask_values},
        job.fourth_axis,
        job.uncompressed,
    )


def _lost(run: _Run, case: PlannedCase, lost: Lost) -> Made:
    """The entry of a case whose worker did not come back; the traceback stays private, since it may quote values."""
    code = _LOST[lost.why]
    if lost.trace:
        append_line(run.private / "log.txt", f"case {case.id}\n{lost.trace}")
    what = f"{_LOST_WHAT[lost.why]} ({lost.detail})"
    return Made(Entry(case.id, case.signature, "failed", code, what, REMEDY[code]))


def _summary(run: _Run, tree: Mapping[str, Any], labels: Labels | None, *, read: int, resumed: int) -> Summary:
    files, volumes = tree["counts"], tree["volumes"]
    usable = files["accepted"] + files["repaired"]
    unlabelled = labels is not None and not labels.matched_rows
    code = NOTHING if not usable else PARTIAL if files["refused"] or unlabelled else OK
    names = {"manifest": MANIFEST, "report": REPORT, "table": TABLE, "page": PAGE, "ledger": LEDGER}
    return Summary(
        files=files,
        volumes=volumes,
        read=read,
        resumed=resumed,
        codes=tree["codes"],
        ignored_kinds=tree["ignored"],
        domains=tree["domains"],
        exit_code=code,
        paths={name: run.job.out / file for name, file in names.items()} | {"private": run.private},
        warnings=tuple(tree["warnings"]),
    )
