"""Errors that a user reads: what was expected, what was found, where, what to do; and the exit code they end with."""

from typing import Any, ClassVar

OK, USAGE, PARTIAL, NOTHING, ENVIRONMENT, REFUSED, INTERRUPTED, TERMINATED = 0, 2, 3, 4, 5, 6, 130, 143


class UserError(ValueError):
    """A mistake in a configuration, a manifest or a command line.

    Printed as ``CODE where: what -- remedy``. ``code`` is stable and can be searched for; ``where`` is a file, row,
    key or case. Text must never hold a patient's name or a DICOM identifier.
    """

    exit_code: ClassVar[int] = USAGE

    def __init__(self, code: str, what: str, remedy: str, *, where: str = "") -> None:
        self.code, self.what, self.remedy, self.where = code, what, remedy, where
        super().__init__(f"{code} {where + ': ' if where else ''}{what} — {remedy}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Picklable, so that it crosses from a loading process whole."""
        return _rebuilt, (type(self), self.code, self.what, self.remedy, self.where)


def _rebuilt(kind: type[UserError], code: str, what: str, remedy: str, where: str) -> UserError:
    return kind(code, what, remedy, where=where)


class NothingUsable(UserError):
    """Every input failed, so there is no result at all."""

    exit_code = NOTHING


class EnvironmentFailure(UserError):
    """The machine is at fault, not the data: disk, memory, device, data base, permission."""

    exit_code = ENVIRONMENT


class SafetyRefusal(UserError):
    """Refused to protect a patient, the data or the machine: a path outside its root, a damaged or hostile file."""

    exit_code = REFUSED


class TrainingInterrupted(Exception):
    """SIGINT or SIGTERM arrived, the step was finished and a checkpoint written; ``exit_code`` is 130 or 143."""

    def __init__(self, signal_number: int) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(f"interrupted by signal {signal_number}; the state is saved, run the same command to resume")
