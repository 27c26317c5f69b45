"""A model and its specification at work: images -> decoded outputs -> the case table."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Literal, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from medmtl.bundle import Bundle, ModelSpec
from medmtl.data.batch import Batch
from medmtl.data.case import Case
from medmtl.data.loader import CaseDataset, plain_batches
from medmtl.models.sliding import slide
from medmtl.models.views import VIEWS, ViewSet
from medmtl.tasks.regression import Regression

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Precision = Literal["fp32", "bf16"]


class Predictor:
    """Averages decoded outputs over the specification's views. The model is put into evaluation mode for each call."""

    def __init__(
        self,
        model: nn.Module,
        spec: ModelSpec,
        *,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
        views: ViewSet | None = None,
    ) -> None:
        self.device, self.spec, self.precision = torch.device(device), spec, precision
        self.views = VIEWS[views or spec.views]
        self.model = model.to(self.device)

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        *,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
        views: ViewSet | None = None,
    ) -> "Predictor":
        """A predictor for a bundle that was read back."""
        return cls(
            channels_last(bundle.model.eval()),
            bundle.spec,
            device=device,
            precision=precision,
            views=views,
        )

    @torch.inference_mode()
    def decode(self, image: Tensor, covariates: Tensor | None = None) -> dict[str, Tensor]:
        """``image [B, C, *S]``, preprocessed -> {task: probabilities [B, K, ...] or values [B]}, float32 on the CPU.

        Without ``covariates`` [B, P], a model that wants them takes every case for one of which none is known. Where
        the specification has patches, images may be of any size: windows slide over them (:func:`.sliding.slide`).
        """
        patches = self.spec.preprocess.patches
        if patches is None:
            return self._decode(image, covariates)

        def answer(windows: Tensor, row: int) -> dict[str, Tensor]:
            known = None if covariates is None else covariates[row].expand(len(windows), -1)
            return self._decode(windows, known)

        return slide(image, answer, size=patches.size, overlap=patches.overlap, together=patches.windows)

    def _decode(self, image: Tensor, covariates: Tensor | None = None) -> dict[str, Tensor]:
        """What :meth:`decode` gives, all of the image at once."""
        was_training = self.model.training
        if was_training:  # a walk over every module, in Python: not for nothing
            self.model.eval()
        image = image.to(self.device)
        covariates = None if covariates is None else covariates.to(self.device)
        if image.ndim == 4:
            image = image.to(memory_format=torch.channels_last)
        sums: dict[str, Tensor] = {}
        for view in self.views:
            with _exact(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                outputs = self.model(view.apply(image), covariates)
            for name, output in outputs.items():
                decoded = self.spec.tasks[name].decode(output.float())
                decoded = view.undo(decoded) if decoded.ndim == image.ndim else decoded
                sums[name] = sums[name] + decoded if name in sums else decoded
        if was_training:
            self.model.train()
        return {name: (value / len(self.views)).cpu() for name, value in sums.items()}

    def rows(self, batch: Batch, cases: Mapping[str, Case]) -> list[dict[str, object]]:
        """One row of the case table per case and task of a batch."""
        decoded = self.decode(batch.image, batch.covariates)
        sums = {
            name: torch.stack([self.spec.tasks[item].quantity(decoded[item]) for item in task.sum_of]).sum(0)
            for name, task in self.spec.tasks.items()
            if isinstance(task, Regression) and task.sum_of
        }
        rows: list[dict[str, object]] = []
        for name, task in self.spec.tasks.items():
            target_name = task.target or name
            targets, labelled = batch.targets.get(target_name), batch.labelled.get(target_name)
            for i, case_id in enumerate(batch.case_ids):
                known = targets is not None and labelled is not None and bool(labelled[i])
                case = cases[case_id]
                rows.append(
                    {
                        "case_id": case_id,
                        "group": case.group,
                        "domain": case.domain,
                        "split": case.split,
                        "task": name,
                        **task.row(decoded[name][i], targets[i] if known and targets is not None else None),
                        **({"items_sum": float(sums[name][i])} if name in sums else {}),
                        **{f"meta.{key}": value for key, value in case.meta.items()},
                    }
                )
        return rows

    def table(
        self,
        dataset: CaseDataset,
        *,
        batch_size: int,
        indices: Sequence[int] | None = None,
        tick: Callable[[int], None] = lambda done: None,
    ) -> pd.DataFrame:
        """The case table of (a part of) a data set; ``tick`` is told how many cases are done after each batch."""
        chosen = list(range(len(dataset))) if indices is None else list(indices)
        cases = {case.case_id: case for case in dataset.cases}
        rows: list[dict[str, object]] = []
        for batch in plain_batches(dataset, chosen, batch_size):
            rows += self.rows(batch, cases)
            tick(len(batch.case_ids))
        return case_table(rows)

    def arrays(self, images: np.ndarray) -> pd.DataFrame:
        """Images [B, H, W, C], uint8 or float in [0, 1] -> one row per image: probabilities, labels, values.

        Dense tasks give the foreground fraction; covariates count as missing. This is the signature of the MLflow
        model.
        """
        channels_first = torch.as_tensor(np.ascontiguousarray(images)).movedim(-1, 1)
        scaled = channels_first.float() / 255 if channels_first.dtype == torch.uint8 else channels_first.float()
        decoded = self.decode(torch.stack([self.spec.preprocess.apply(image) for image in scaled]))
        records = []
        for i in range(len(images)):
            record: dict[str, object] = {}
            for name, task in self.spec.tasks.items():
                record.update({f"{name}.{key}": value for key, value in task.row(decoded[name][i], None).items()})
            records.append(record)
        return pd.DataFrame(records)


def _exact() -> AbstractContextManager[None]:
    """Convolutions on a GPU without TF32, with which a probability would depend on its batch in the third digit."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def channels_last(model: ModuleT) -> ModuleT:
    """The model with the kernels of its 2-D convolutions in channels-last order, in place.

    Not by ``Module.to``, which fails on a model that has 3-D ones too.
    """
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def case_table(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """Rows as a data frame, sorted by task and case, with ``target`` and ``prediction`` always there."""
    table = pd.DataFrame(list(rows), columns=None if rows else ["case_id", "task"])  # a rank may have no case
    for column in ("target", "prediction"):
        if column not in table:
            table[column] = np.nan
    order = {task: i for i, task in enumerate(dict.fromkeys(table["task"]))}
    keys = table["task"].map(order)
    return (
        table.assign(_task=keys)
        .sort_values(["_task", "case_id"], kind="stable")
        .drop(columns="_task")
        .reset_index(drop=True)
    )
