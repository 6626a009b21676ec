"""What the trainers share: labelled batches, one guarded step, and runs that can be resumed."""

import math
import os
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..utils.files import read_whole, write_atomically
from ..utils.labels import IGNORED, check_labels
from ..utils.loader import batches, check_loader

__all__ = ["Run", "Writer", "fitting", "labelled", "step"]

FORMAT = 1


class Writer(Protocol):
    """Anything with ``add_scalar``, such as TensorBoard's ``SummaryWriter``."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object:
        """Record one number."""


def labelled(
    loader: Iterable[Any], name: str, device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and class labels of all batches, on a device.

    Raises:
        TypeError: if the loader can be read only once, or yields no labels.
        ValueError: if there is no batch.
    """
    check_loader(loader, name)
    for x, target in batches(loader, name):
        if not isinstance(target, Tensor) or target.is_floating_point():
            raise TypeError(f"{name} must yield (input, class labels) batches; the labels are missing")
        yield x.to(device), target.to(device).long()


def fitting(target: Tensor, out: Tensor) -> Tensor:
    """Labels ``[N, ...]`` for scores ``[N, C, ...]``, with −100 for pixels of no class.

    Raises:
        ValueError: names both shapes, or the range of labels.
    """
    if out.dim() < 2 or out[:, 0].shape != target.shape:
        raise ValueError(
            f"labels {list(target.shape)} do not fit the output {list(out.shape)}; the network must "
            "return class scores [N, C, ...] and the loader yield labels [N, ...]"
        )
    check_labels(target, out.shape[1])
    return target.where((target >= 0) & (target < out.shape[1]), IGNORED)


def step(loss: Tensor, optimizer: torch.optim.Optimizer) -> float:
    """One step of the optimizer; returns the loss.

    Raises:
        ValueError: if the loss or a gradient is NaN or infinite, before anything is changed.
    """
    optimizer.zero_grad()
    loss.backward()
    # Spikes hide a NaN current from the loss, but not from the gradient.
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, math.inf)
    if not (loss.isfinite() and norm.isfinite()):
        raise ValueError(
            f"the loss is {loss.item()} and the norm of its gradient {norm.item()}; lower lr, and "
            "check that the images have no NaN. The network that was passed in is as it was"
        )
    optimizer.step()
    return loss.item()


class Run:
    """A training run that goes on where its checkpoint file ends.

    The file holds network, optimizer, epoch, random number generators and whatever the trainer adds;
    it is written after every epoch beside its place and then moved there.

    Args:
        path: the checkpoint file, or ``None`` to keep nothing.
        settings: must be those of the file, if there is one.
        loader: the training loader; the state of its ``generator`` is kept too.
        net: the network that is trained.
        optimizer: its optimizer.

    Attributes:
        epoch: how many epochs are done.
        extra: what the trainer added at the last :meth:`save`.

    Raises:
        ValueError: if the file is damaged, foreign, or of a run with other settings.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        settings: dict[str, Any],
        loader: Any,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self.path = None if path is None else Path(path)
        self.settings, self.loader, self.net, self.optimizer = settings, loader, net, optimizer
        self.epoch = 0
        self.extra: dict[str, Any] = {}
        if self.path is not None and self.path.exists():
            self._resume(self._read(self.path))

    def save(self, epoch: int, **extra: Any) -> None:
        """Note that ``epoch`` epochs are done."""
        self.epoch, self.extra = epoch, extra
        if self.path is None:
            return
        content = {
            "training_format": FORMAT,
            "settings": self.settings,
            "epoch": epoch,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generators": self._generators(),
            "extra": extra,
        }
        write_atomically(content, self.path)

    def _read(self, path: Path) -> dict[str, Any]:
        content = read_whole(path)
        if not isinstance(content, dict) or content.get("training_format") != FORMAT:
            raise ValueError(f"{path} is not a checkpoint of this training; pass another file name")
        if content["settings"] != self.settings:
            old, new = content["settings"], self.settings
            names = [n for n in {**old, **new} if old.get(n) != new.get(n)]
            differences = ", ".join(f"{n}={old.get(n)!r} (now {new.get(n)!r})" for n in names)
            raise ValueError(
                f"checkpoint {path} is of a run with {differences}; pass these settings to go on with "
                "it, or another file name to start anew"
            )
        return content

    def _resume(self, content: dict[str, Any]) -> None:
        try:
            self.net.load_state_dict(content["net"])
            self.optimizer.load_state_dict(content["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"checkpoint {self.path} is of another network: {error}") from error
        self.epoch, self.extra = content["epoch"], content["extra"]
        generators = content["generators"]
        torch.set_rng_state(generators["torch"])
        version, state, gauss = generators["python"]
        random.setstate((version, tuple(state), gauss))
        if generators["cuda"]:
            torch.cuda.set_rng_state_all(generators["cuda"])
        if generators["loader"] is not None:
            self.loader.generator.set_state(generators["loader"])

    def _generators(self) -> dict[str, Any]:
        generator = getattr(self.loader, "generator", None)
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return {
            "torch": torch.get_rng_state(),
            "python": random.getstate(),
            "cuda": cuda,
            "loader": None if generator is None else generator.get_state(),
        }
