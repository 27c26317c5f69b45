"""An image larger than the network's input: overlapping windows, all heads in one pass, their answers put together."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Answer = Callable[[Tensor, int], Mapping[str, Tensor]]
_SIGMA = 0.125  # of the window, as MONAI's default


def windows_of(spatial: Sequence[int], size: Sequence[int], overlap: float) -> list[tuple[slice, ...]]:
    """Windows that cover an image, ``(1 - overlap)`` of their size apart, the last ones pushed back inside."""
    from monai.data.utils import dense_patch_slices  # MONAI takes seconds to import: for those who use it

    steps = [n if n == total else max(int(n * (1 - overlap)), 1) for n, total in zip(size, spatial, strict=True)]
    return list(dense_patch_slices(tuple(spatial), tuple(size), tuple(steps)))


def slide(image: Tensor, answer: Answer, *, size: Sequence[int], overlap: float, together: int) -> dict[str, Tensor]:
    """The answers for ``image`` [B, C, *S] from windows of ``size``, on the CPU.

    ``answer(windows [W, C, *size], row of the batch)`` gives tensors by name. Those with the windows' axes, [W, K,
    *size], are dense: y(v) = sum_i g_i(v) y_i(v) / sum_i g_i(v) over the windows i that hold voxel v, g a Gaussian
    about the window's middle (Isensee et al. 2021; MONAI's ``sliding_window_inference``, ``mode="gaussian"``). Others,
    [W, ...], are taken for a map that is constant in its window, blended likewise and averaged over the image; that is
    ``sum_i s_i y_i`` with shares s_i of sum 1, by which no voxel counts twice because windows overlap there.

    Values must bear averaging: probabilities, numbers. A single window is passed through as it is. Where the image is
    smaller than ``size`` along an axis, so is the window. At most ``together`` windows are in memory at a time, beside
    the results.
    """
    spatial = tuple(image.shape[2:])
    size = tuple(min(n, total) for n, total in zip(size, spatial, strict=True))
    windows = windows_of(spatial, size, overlap)
    if len(windows) == 1:
        whole = [answer(image[row : row + 1], row) for row in range(len(image))]
        return {name: torch.cat([found[name] for found in whole]) for name in whole[0]}
    from monai.data.utils import compute_importance_map

    weight = compute_importance_map(size, mode="gaussian", sigma_scale=_SIGMA, device="cpu", dtype=torch.float32)
    cover = torch.zeros(spatial)
    for where in windows:
        cover[where] += weight
    shares = torch.stack([(weight / cover[where]).double().sum() for where in windows]) / cover.numel()
    rows = [_row(image, row, answer, windows, weight, shares, together) for row in range(len(image))]
    result = {name: torch.cat([found[name] for found in rows]) for name in rows[0]}
    return {name: value.div_(cover) if value.shape[2:] == spatial else value for name, value in result.items()}


def _row(
    image: Tensor,
    row: int,
    answer: Answer,
    windows: Sequence[tuple[slice, ...]],
    weight: Tensor,
    shares: Tensor,
    together: int,
) -> dict[str, Tensor]:
    """Of one image the weighted sums, [1, K, *S] of dense answers and [1, ...] of others."""
    sums: dict[str, Tensor] = {}
    for start in range(0, len(windows), together):
        some = windows[start : start + together]
        found = answer(torch.stack([image[row][(slice(None), *where)] for where in some]), row)
        for name, answers in found.items():
            values, dense = answers.float().cpu(), answers.shape[2:] == weight.shape
            if name not in sums:
                shape = (1, values.shape[1], *image.shape[2:]) if dense else (1, *values.shape[1:])
                sums[name] = torch.zeros(shape)
            for i, where in enumerate(some):
                if dense:
                    sums[name][0][(slice(None), *where)] += values[i] * weight
                else:
                    sums[name][0] += values[i] * shares[start + i].float()
    return sums
