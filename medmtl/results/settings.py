"""What may still be said about a run that is trained: how it is evaluated, and by what."""

from collections.abc import Sequence

from medmtl.config import flatten, load, plain
from medmtl.errors import UserError
from medmtl.runs import RunFolder
from medmtl.study import Study

OPEN = (
    "evaluation",
    "views",
    "data.manifest",
    "loader.cache",
    "loader.cache_gib",
    "loader.evaluation_batch_size",
    "fit.device",
    "tracking",
)  # keys that an evaluation reads; a manifest at another place must hold the same bytes (E-EVAL-DATA)


def study_of(run: RunFolder, overrides: Sequence[str] = ()) -> Study:
    """The study of a run with ``a.b=value`` set for its evaluation.

    A key that is unknown is E-CFG, as in training; one that says how the model was trained, or on what, is E-EVAL-KEY.
    """
    if not run.study.is_file():
        raise UserError(
            "E-EVAL-RUN", "no study.yaml", "give the folder of a run (runs/...), or train first", where=str(run.path)
        )
    trained, study = load(Study, run.study), load(Study, run.study, overrides)
    before, after = flatten(plain(trained)), flatten(plain(study))
    changed = sorted(key for key in {**before, **after} if before.get(key) != after.get(key) and not _is_open(key))
    if changed:
        raise UserError(
            "E-EVAL-KEY",
            f"{', '.join(changed)} cannot change: this run is trained",
            f"set keys of {', '.join(OPEN)}; for another model train again, or give the YAML file of its study",
            where=str(run.path),
        )
    return study


def _is_open(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in OPEN)
