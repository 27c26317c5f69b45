"""Where a training is. With the parameters it is the whole state: everything random is counted from it."""

from dataclasses import dataclass, field
from math import isfinite


@dataclass
class Progress:
    """Epochs, batches and steps that are done, the best validation so far, and the sums of the running epoch."""

    epoch: int = 0
    batch: int = 0  # batches of this epoch already used
    step: int = 0  # optimizer steps done
    bad_steps: int = 0  # consecutive ones that were skipped
    skipped_steps: int = 0  # all of them
    best: float | None = None
    best_epoch: int = -1
    stale: int = 0  # validations since the best
    finished: bool = False
    sums: dict[str, float] = field(default_factory=dict)  # of this epoch's losses
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        """Count a step's loss; one that is not finite belongs to a step that was skipped."""
        if isfinite(value):
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """The epoch's mean losses, the total first; NaN where no step had one."""
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        return {"loss": means.pop("loss", float("nan")), **means}

    def keep_best(self, value: float, *, higher_is_better: bool) -> bool:
        """Whether this epoch's validation is the best so far. NaN never is; of equal ones the earlier is kept."""
        better = value == value and (
            self.best is None or (value > self.best if higher_is_better else value < self.best)
        )
        if better:
            self.best, self.best_epoch, self.stale = float(value), self.epoch, 0
        else:
            self.stale += 1
        return better

    def keep_last(self, value: float) -> None:
        """Take this epoch's validation for the one to keep, whatever it is."""
        self.best, self.best_epoch = float(value) if value == value else None, self.epoch

    def next_epoch(self) -> None:
        """Go on to the next epoch's first batch."""
        self.epoch, self.batch, self.sums, self.counts = self.epoch + 1, 0, {}, {}
