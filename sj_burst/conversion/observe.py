"""Statistics of every activation over the calibration images."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from tqdm import tqdm

from ..graph.trace import activation_names
from ..rules.statistics import ActivationStatistics
from ..utils.inference import forward_hooks
from ..utils.inputs import bind
from ..utils.loader import batches
from .assemble import slope_below_zero

__all__ = ["observe"]


@torch.no_grad()
def observe(
    gm: fx.GraphModule,
    loader: Iterable[Any],
    *,
    channel_wise: bool,
    device: torch.device | str,
    progress: bool = True,
) -> dict[str, ActivationStatistics]:
    """Statistics of every activation of a standardized graph over a calibration set.

    Args:
        gm: a standardized graph.
        loader: calibration batches.
        channel_wise: one set of statistics per channel.
        device: where the graph runs.
        progress: show a progress bar.

    Raises:
        ValueError: if the loader is empty, or an activation is NaN or infinite.
    """
    modules = {name: gm.get_submodule(name) for name in activation_names(gm)}
    statistics = {
        name: ActivationStatistics(channel_wise, _upper(module), slope_below_zero(module))
        for name, module in modules.items()
    }

    def update(name: str, _: nn.Module, z: Tensor, __: Tensor) -> None:
        try:
            statistics[name].update(z)
        except ValueError as error:
            raise ValueError(
                f"{error} before the activation {name!r}; check the calibration images and the "
                "network's weights"
            ) from None

    pairs = tqdm(batches(loader, "calibration_loader"), "calibrate", disable=not progress, leave=False)
    first: list[list[int]] = []
    with forward_hooks(modules, update):
        for x, _ in pairs:
            shapes = [list(t.shape[1:]) for t in x.tensors]
            first = first or shapes
            try:
                gm(*bind(gm, x.to(device).value).values())
            except RuntimeError as error:
                if shapes == first:
                    raise
                one, other = (s[0] if len(s) == 1 else s for s in (first, shapes))
                raise ValueError(
                    f"calibration_loader yields inputs of shapes {one} and {other}, "
                    "and not both can be taken; bring them to one, or try channel_wise=False"
                ) from error
    for found in statistics.values():
        found.all_reduce()
    return statistics


def _upper(activation: nn.Module) -> float:
    return activation.max_val if isinstance(activation, nn.Hardtanh) else math.inf
