"""The command line. Every command imports what it needs when it runs, so that ``medmtl --help`` takes no time."""

from medmtl.cli import agreement, doctor, explain, export, prediction, scans, studies
from medmtl.cli.app import main, run

__all__ = ["agreement", "doctor", "explain", "export", "main", "prediction", "run", "scans", "studies"]
