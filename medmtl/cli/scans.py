"""Commands about scans: ingest, de-identify."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medmtl.cli.app import app, say

if TYPE_CHECKING:
    from medmtl.io.deidentify.profile import Options


@app.command()
def ingest(
    source: Annotated[
        Path, typer.Argument(help="Folder of DICOM, NIfTI, PNG, JPEG and TIFF files, and anything else.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the study; not inside SOURCE.")],
    private: Annotated[
        Path | None, typer.Option(help="Folder for key, index and real paths; default: OUT.private.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Key file of the pseudonyms, to share one between studies.")] = None,
    keep_names: Annotated[
        bool, typer.Option("--keep-names", help="No de-identification: patient ids, file names and dates stay.")
    ] = False,
    allow_burned_in: Annotated[
        bool, typer.Option("--allow-burned-in", help="Accept images that may show a name in their pixels.")
    ] = False,
    domain: Annotated[
        str, typer.Option(help='Domain, as "{Manufacturer} {StationName}" or "{folder:1}"; default: make and model.')
    ] = "",
    group: Annotated[
        str, typer.Option(help='Patient of NIfTI files and pictures, as "{folder:2}" or "(?P<group>sub-[0-9]+)".')
    ] = "",
    one_patient: Annotated[
        str, typer.Option(help='Refuse DICOM files of two patients where there should be one, as "{folder:1}".')
    ] = "",
    labels: Annotated[Path | None, typer.Option(help="Table of labels: CSV or XLSX.")] = None,
    label_key: Annotated[str, typer.Option(help="Its column that holds the key.")] = "",
    match: Annotated[str, typer.Option(help='The key of a case, as "{PatientID}" or "{stem}".')] = "{PatientID}",
    targets: Annotated[str, typer.Option(help="Its columns that become targets, as a,b; default: all others.")] = "",
    mask: Annotated[
        list[str] | None, typer.Option(help=r"Masks of an image: 'lesion=images/(.+)\.nii -> labels/\1.nii'.")
    ] = None,
    mask_values: Annotated[
        list[str] | None, typer.Option(help="Labels that a mask may hold, as lesion=0,1,2 or organs=0-40.")
    ] = None,
    segments: Annotated[
        bool, typer.Option("--segments", help="DICOM SEG and RTSTRUCT become masks of the volumes they are drawn on.")
    ] = False,
    tilt: Annotated[Literal["refuse", "keep", "resample"], typer.Option(help="Gantry tilt.")] = "refuse",
    irregular: Annotated[Literal["refuse", "resample"], typer.Option(help="Uneven distances of slices.")] = "refuse",
    gap: Annotated[Literal["refuse", "resample"], typer.Option(help="Missing slices.")] = "refuse",
    time: Annotated[
        Literal["split", "stack"], typer.Option(help="4-D series: a volume per time point, or one 4-D image.")
    ] = "split",
    fourth_axis: Annotated[
        Literal["time", "channel", "refuse"], typer.Option(help="What the fourth axis of a NIfTI file is.")
    ] = "time",
    allow_incomplete: Annotated[
        bool, typer.Option("--allow-incomplete", help="Use what is left of a series of which some files are damaged.")
    ] = False,
    fill_nan: Annotated[
        bool, typer.Option("--fill-nan", help="Replace NaN by the lowest value, in up to 0.1 % of the voxels.")
    ] = False,
    uncompressed: Annotated[
        bool, typer.Option("--uncompressed", help="Write volumes as .nii: faster, and two to four times as large.")
    ] = False,
    max_case_gib: Annotated[float, typer.Option(min=0.01, help="Largest volume in memory.")] = 4.0,
    jobs: Annotated[int, typer.Option(min=0, max=64, help="Processes; 0: one per core.")] = 0,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that one volume may take.")] = 900.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan and report only.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the study of another source, key or naming.")
    ] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first volume that fails.")] = False,
    max_failures: Annotated[str, typer.Option(help="Stop when more volumes than 20, or 5%, have failed.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
) -> int:
    """Make a study of a folder of scans. Every file is accepted, repaired, refused with a reason, or ignored."""
    from medmtl.ingest.pool import start_server

    start_server()  # its imports overlap with ours
    from medmtl.ingest.command import label_rule, label_values, mask_rules, told
    from medmtl.ingest.pipeline import Job
    from medmtl.ingest.pipeline import ingest as ingest_folder
    from medmtl.io.dicom.series import Policy

    policy = Policy(
        gap=gap,
        irregular=irregular,
        tilt=tilt,
        time=time,
        allow_incomplete=allow_incomplete,
        max_bytes=int(max_case_gib * 2**30),
    )
    job = Job(
        source=source,
        out=out,
        private=private,
        key=key,
        policy=policy,
        keep_names=keep_names,
        allow_burned_in=allow_burned_in,
        fill_nan=fill_nan,
        domain=domain,
        group=group,
        labels=label_rule(labels, label_key, match, targets),
        masks=mask_rules(mask or ()),
        mask_values=label_values(mask_values or ()),
        segments=segments,
        fourth_axis=fourth_axis,
        uncompressed=uncompressed,
        one_patient=one_patient,
        jobs=jobs,
        timeout_s=timeout,
        dry_run=dry_run,
        overwrite=overwrite,
        fail_fast=fail_fast,
        max_failures=max_failures,
    )
    summary = ingest_folder(job)
    for line in told(summary, as_json=as_json):
        say(line)
    return summary.exit_code


@app.command()
def deidentify(
    folders: Annotated[list[Path], typer.Argument(help="SOURCE OUT; with --verify: OUT.", metavar="SOURCE OUT")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Search every file of OUT for identifiers of the source instead.")
    ] = False,
    source: Annotated[
        Path | None, typer.Option(help="With --verify: the originals; default: those that OUT was made of.")
    ] = None,
    private: Annotated[Path | None, typer.Option(help="Folder of key and real paths; default: OUT.private.")] = None,
    dates: Annotated[Literal["shift", "remove"], typer.Option(help="Dates: moved per patient, or removed.")] = "shift",
    characteristics: Annotated[bool, typer.Option(help="Keep sex, age (up to 90), height and weight.")] = True,
    descriptors: Annotated[bool, typer.Option(help="Keep the safe words of descriptions.")] = True,
    safe_private: Annotated[bool, typer.Option(help="Keep private numbers that pixels need to be read.")] = True,
    allow_burned_in: Annotated[
        bool, typer.Option("--allow-burned-in", help="Pass images that may show a name in their pixels.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes.")] = 2,
) -> int:
    """De-identify a folder of DICOM files (PS3.15 basic profile), or prove that an output is clean."""
    from medmtl.errors import UserError
    from medmtl.io.deidentify.profile import Options

    options = Options(
        dates=dates,
        patient_characteristics=characteristics,
        descriptors=descriptors,
        safe_private=safe_private,
        allow_burned_in=allow_burned_in,
    )
    if len(folders) != (1 if verify else 2) or (source is not None and not verify):
        raise UserError(
            "E-DEID-USAGE",
            f"{len(folders)} folder(s) given",
            "write medmtl deidentify SOURCE OUT, or medmtl deidentify --verify OUT [--source SOURCE]",
        )
    if verify:
        return _verify(folders[0], source, private, options)
    from medmtl.io.deidentify.folder import default_private, deidentify_folder

    outcome = deidentify_folder(folders[0], folders[1], private=private, options=options, workers=workers)
    again = f" ({outcome.resumed} by an earlier run)" if outcome.resumed else ""
    say(f"{outcome.ok} of {len(outcome.rows)} DICOM files are de-identified{again}: {folders[1]}")
    if outcome.ignored:
        say("ignored: " + ", ".join(f"{count} {kind}" for kind, count in outcome.ignored.items()))
    if outcome.refused:
        say(f"{outcome.refused} are not, with code and remedy: {folders[1] / 'deidentification.csv'}")
    say(f"key and real paths (private): {private or default_private(folders[1])}")
    say(f"next: medmtl deidentify --verify {folders[1]}")
    return outcome.exit_code


def _verify(out: Path, source: Path | None, private: Path | None, options: "Options") -> int:
    from medmtl.io.deidentify.verify import verify as search

    findings = search(out, source, private=private, options=options)
    for hit in findings.hits:
        say(f"{hit.file}: {hit.kind} ({hit.where})")
    for name in findings.unreadable:
        say(f"{name}: could not be searched")
    say(
        f"{findings.files} files searched for {findings.identifiers} identifiers of {findings.sources} source files: "
        + ("none is left" if findings.clean else f"{len(findings.hits)} found, {len(findings.unreadable)} unsearchable")
    )
    if findings.unsearchable:
        kinds = ", ".join(f"{count} {kind}" for kind, count in findings.unsearchable.items())
        say(f"too short or too common to be searched for: {kinds}")
    return findings.exit_code
