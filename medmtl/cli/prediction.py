"""The command that runs a bundle on a folder of scans."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medmtl.cli.app import app, say

if TYPE_CHECKING:
    from medmtl.inference.job import Job, Summary
    from medmtl.inference.writers import Output


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="Folder that `medmtl train` wrote: runs/.../bundle.")],
    source: Annotated[
        Path, typer.Argument(help="Folder of DICOM, NIfTI, PNG, JPEG and TIFF files, and anything else.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for predictions.csv, masks, reports and the ledger.")],
    also: Annotated[
        list[Path] | None, typer.Option("--bundle", help="One more bundle (fold, seed): the mean of all is predicted.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that go through the network together.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Threads that read and write.")] = 2,
    max_ram: Annotated[
        float | None, typer.Option(min=0.001, help="GiB for images and results at hand; default: half of the memory.")
    ] = None,
    views: Annotated[
        Literal["identity", "mirror", "flips", "dihedral"] | None,
        typer.Option(help="Views to average over; default: the bundle's."),
    ] = None,
    overlays: Annotated[bool, typer.Option(help="Draw the masks of dense tasks on pictures.")] = True,
    write: Annotated[
        str, typer.Option(help="Results of a case as files, of nifti,dicom-seg,dicom-sr,json,html.")
    ] = "nifti",
    probabilities: Annotated[
        Literal["none", "float32", "uint8"], typer.Option(help="With nifti: maps of the classes' probabilities too.")
    ] = "none",
    segmentation: Annotated[
        Literal["binary", "fractional", "labelmap"], typer.Option(help="What dicom-seg holds.")
    ] = "binary",
    coding: Annotated[
        Path | None, typer.Option(help="YAML file: a task, class or TASK.CLASS -> its code, say in SNOMED CT.")
    ] = None,
    gate: Annotated[
        Literal["off", "warn", "refuse"], typer.Option(help="What happens to an image unlike the training images.")
    ] = "warn",
    names: Annotated[
        Literal["hash", "path"],
        typer.Option(help="What results of pictures and NIfTI files are called: paths may name patients."),
    ] = "hash",
    tilt: Annotated[Literal["refuse", "keep", "resample"], typer.Option(help="Gantry tilt.")] = "refuse",
    irregular: Annotated[Literal["refuse", "resample"], typer.Option(help="Uneven distances of slices.")] = "refuse",
    gap: Annotated[Literal["refuse", "resample"], typer.Option(help="Missing slices.")] = "refuse",
    allow_incomplete: Annotated[
        bool, typer.Option("--allow-incomplete", help="Use what is left of a series of which some files are damaged.")
    ] = False,
    fill_nan: Annotated[
        bool, typer.Option("--fill-nan", help="Replace NaN by the lowest value, in up to 0.1 % of the voxels.")
    ] = False,
    max_case_gib: Annotated[float, typer.Option(min=0.01, help="Largest volume in memory.")] = 4.0,
    max_failures: Annotated[int | None, typer.Option(min=0, help="Stop when more images than this failed.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the results of another bundle or other settings.")] = False,
    ray: Annotated[
        int | None, typer.Option(min=1, help="Share the work out over so many workers of Ray (extra: medmtl[ray]).")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="With --ray: HOST:PORT of a Ray cluster, or auto; default: one for this job.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be done; write nothing.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on: predict what is added to SCANS, until stopped.")
    ] = False,
    settle: Annotated[
        float, typer.Option(min=0, help="With --watch: seconds for which a study must not have grown.")
    ] = 30.0,
) -> int:
    """Predict every scan of a folder. Running again continues; what cannot be read is a row with a reason.

    Exit codes: 0 every input has a result; 2 the command cannot be meant; 3 some inputs have no result; 4 none has; 5
    disk, memory or device; 6 refused to protect somebody; 130 and 143 interrupted, the state is saved.
    """
    from medmtl.errors import UserError
    from medmtl.inference.job import Job
    from medmtl.inference.shards import Shard
    from medmtl.io.dicom.series import Policy

    if watch and dry_run:
        raise UserError("E-PRE-JOB", "--watch and --dry-run together", "give one of them", where="predict")
    if ray is not None and (watch or dry_run):
        other = "--watch" if watch else "--dry-run"
        raise UserError("E-PRE-JOB", f"--ray and {other} together", "give one of them", where="predict")
    if ray is None and ray_address is not None:
        raise UserError("E-PRE-JOB", "--ray-address without --ray", "give the number of workers", where="predict")
    job = Job(
        bundle=bundle,
        source=source,
        out=out,
        also=tuple(also or ()),
        batch_size=batch_size,
        device=device,
        views=views,
        overlays=overlays,
        output=_output(write, probabilities, segmentation, coding),
        gate=gate,
        names=names,
        policy=Policy(
            gap=gap,
            irregular=irregular,
            tilt=tilt,
            allow_incomplete=allow_incomplete,
            max_bytes=int(max_case_gib * 2**30),
        ),
        fill_nan=fill_nan,
        workers=jobs,
        max_ram=None if max_ram is None else int(max_ram * 2**30),
        overwrite=overwrite,
        max_failures=max_failures,
        shard=Shard.of(os.environ),
    )
    if dry_run:
        return _dry_run(job)
    if ray is not None:
        from medmtl.inference.cluster import Cluster, predict_on_ray

        return _told(predict_on_ray(job, Cluster(ray, ray_address)))
    if watch:
        from medmtl.inference.watch import watch as watch_folder

        return _told(watch_folder(job, settle_s=settle))
    from medmtl.inference.pipeline import predict as predict_folder

    summary = predict_folder(job)
    return _told(summary) if job.shard.rank == 0 else summary.exit_code


@app.command("watch-health")
def watch_health(
    out: Annotated[Path, typer.Argument(help="Folder that `medmtl predict --watch` writes to.")],
    max_age: Annotated[
        float | None, typer.Option(min=1, help="Seconds without a sign of life; default: what the watcher says.")
    ] = None,
) -> int:
    """Whether the watcher of a folder is at work: exit code 0, or 1 and the reason. For containers and monitoring."""
    from medmtl.inference.heartbeat import health

    found = health(out, max_age_s=max_age)
    typer.echo(f"{'healthy' if found.ok else 'unhealthy'}: {found.reason}")
    return 0 if found.ok else 1


def _output(write: str, probabilities: str, segmentation: str, coding: Path | None) -> "Output":
    from medmtl.config import read_yaml, validate
    from medmtl.errors import UserError
    from medmtl.inference.writers import FORMATS, Output

    names = [name.strip() for name in write.split(",") if name.strip()]
    wrong = next((name for name in names if name not in FORMATS), None)
    if wrong is not None:
        raise UserError("E-PRE-JOB", f"unknown format {wrong!r}", f"choose {', '.join(FORMATS)}", where="--write")
    tree = {"formats": names, "probabilities": probabilities, "segmentation": segmentation}
    if coding is None:
        return validate(Output, tree, where="--write")
    return validate(Output, {**tree, "coding": read_yaml(coding)}, where=str(coding))


def _told(summary: "Summary") -> int:
    from medmtl.inference.folder import SOURCES

    say(f"{summary.ok} of {summary.total} inputs have a result: {summary.paths['predictions']}")
    if summary.total:
        say(f"which file each of them is: {summary.paths['predictions'].with_name(SOURCES)}")
    if summary.failed or summary.skipped:
        count = summary.failed + summary.skipped
        say(f"{count} have none, with reason and remedy: {summary.paths['errors']}")
    if summary.referred > summary.failed + summary.skipped:
        say(f"{summary.referred} should be looked at by a reader: {summary.paths['summary']}")
    return summary.exit_code


def _dry_run(job: "Job") -> int:
    from medmtl.errors import NOTHING, OK, PARTIAL
    from medmtl.inference.pipeline import look_ahead

    listing, batches = look_ahead(job)
    for item in listing.inputs:
        shape = " x ".join(str(n) for n in item.shape) or "size unknown"
        fate = f"refused: {item.refused.code} {item.refused.what}" if item.refused else shape
        say(f"{item.id}  {item.kind}  {len(item.files)} file(s)  {fate}")
    usable = sum(item.refused is None for item in listing.inputs)
    aside = sum(listing.ignored.values())
    say(f"{usable} of {len(listing.inputs)} inputs would be tried, in {len(batches)} batches; {aside} files left aside")
    return NOTHING if not usable else PARTIAL if usable < len(listing.inputs) else OK
