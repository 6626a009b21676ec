"""Training runs that go on where their checkpoint file ends."""

import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..conversion.contents import network_contents
from ..network import SpikingNetwork
from ..utils.files import digest, read_whole, write_atomically

__all__ = ["Run", "fingerprints", "started_from"]

FORMAT = 3


def fingerprints(values: Mapping[str, Any]) -> dict[str, str]:
    """A digest of each value, by which to tell whether it is the same again.

    Example:
        >>> fingerprints({"w": torch.zeros(2)}) == fingerprints({"w": torch.ones(2)})
        False
    """
    return {name: digest(value) for name, value in values.items()}


def started_from(snn: SpikingNetwork) -> dict[str, str]:
    """What tells one converted network from another, thresholds and initial potentials included.

    Example:
        >>> import sj_burst
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> data = [torch.rand(16, 3)]
        >>> first, second = (sj_burst.convert(ann, data, time_steps=T, progress=False) for T in (4, 2))
        >>> started_from(first) == started_from(second)
        False
    """
    content = network_contents(snn)
    kept = {name: content[name] for name in ("options", "max_spikes", "architecture")}
    return fingerprints(kept | content["state_dict"])


class Run:
    """A training run that goes on where its checkpoint file ends.

    The file holds network, optimizer, learning-rate schedule, epoch, random number generators (those of
    torch, Python and NumPy, and a ``torch.Generator`` of the loader or its sampler), what the run was
    started from, and whatever the trainer adds; it is written after every epoch beside its place
    and then moved there.

    Args:
        path: the checkpoint file, or ``None`` to keep nothing.
        settings: must be those of the file, if there is one.
        loader: the training loader; the state of its ``generator``, or its sampler's, is kept too.
        net: the network that is trained.
        optimizer: its optimizer.
        schedule: of the learning rate.
        start: :func:`fingerprints` of what must be the same when the run goes on.

    Attributes:
        epoch: how many epochs are done.
        extra: what the trainer added at the last :meth:`save`.

    Raises:
        ValueError: if parameters are float16, there is no folder for the file, or the file is damaged,
            foreign, of a run with other settings, or of one that was started from another network.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        settings: dict[str, Any],
        loader: Any,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        start: dict[str, str] | None = None,
    ) -> None:
        self.path = None if path is None else Path(path)
        self.settings, self.start, self.loader = settings, start or {}, loader
        self.net, self.optimizer, self.schedule = net, optimizer, schedule
        self.epoch = 0
        self.extra: dict[str, Any] = {}
        _check_precision(net)
        if self.path is not None and not self.path.parent.is_dir():
            raise ValueError(f"checkpoint={str(path)!r}: there is no folder {self.path.parent}")
        if self.path is not None and self.path.exists():
            self._resume(self._read(self.path))

    def save(self, epoch: int, **extra: Any) -> None:
        """Note that ``epoch`` epochs are done."""
        self.epoch, self.extra = epoch, extra
        if self.path is None:
            return
        content: Any = {
            "training_format": FORMAT,
            "settings": self.settings,
            "start": self.start,
            "epoch": epoch,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generators": self._generators(),
            "extra": extra,
        }
        write_atomically(_plain(content), self.path)

    def _read(self, path: Path) -> dict[str, Any]:
        content = read_whole(path)
        if content.get("training_format") != FORMAT:
            raise ValueError(f"{path} is not a checkpoint of this training; pass another file name")
        old, new = content["settings"], self.settings
        if names := _different(old, new):
            differences = ", ".join(f"{n}={old.get(n)!r} (now {new.get(n)!r})" for n in names)
            raise ValueError(
                f"checkpoint {path} is of a run with {differences}; pass these settings to go on with "
                "it, or another file name to start anew"
            )
        if names := _different(content["start"], self.start):
            raise ValueError(
                f"checkpoint {path} is of a run that was started from another network: "
                f"{', '.join(names[:4])}{', …' if names[4:] else ''} differ; pass the network that it "
                "was started from to go on with it, or another file name to start anew"
            )
        return content

    def _resume(self, content: dict[str, Any]) -> None:
        generators = content["generators"]
        generator = self._generator()
        if generators["loader"] is not None and generator is None:
            raise ValueError(
                f"checkpoint {self.path} is of a run whose loader had a generator, and this one has "
                "none; pass one that has, or another file name to start anew"
            )
        try:
            self.net.load_state_dict(content["net"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.schedule.load_state_dict(content["schedule"])
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"checkpoint {self.path} is of another network: {error}") from error
        self.epoch, self.extra = content["epoch"], content["extra"]
        torch.set_rng_state(generators["torch"])
        version, state, gauss = generators["python"]
        random.setstate((version, tuple(state), gauss))
        if generators["cuda"]:
            torch.cuda.set_rng_state_all(generators["cuda"])
        np.random.set_state(generators["numpy"])
        if generator is not None and generators["loader"] is not None:
            generator.set_state(generators["loader"])

    def _generator(self) -> torch.Generator | None:
        """What shuffles: of the loader, or of its sampler."""
        sampler = getattr(self.loader, "sampler", None)
        found = (getattr(owner, "generator", None) for owner in (self.loader, sampler))
        return next((g for g in found if isinstance(g, torch.Generator)), None)

    def _generators(self) -> dict[str, Any]:
        generator = self._generator()
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return {
            "torch": torch.get_rng_state(),
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "cuda": cuda,
            "loader": None if generator is None else generator.get_state(),
        }


def _check_precision(net: nn.Module) -> None:
    if half := [n for n, p in net.named_parameters() if p.dtype == torch.float16]:
        raise ValueError(
            f"parameters such as {half[0]!r} are float16, in which steps of training vanish or "
            "overflow; train the float32 network, net.float()"
        )


def _plain(value: Any) -> Any:
    """The same with numbers and arrays of Python in place of NumPy's, which no file may hold."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, dict):
        made = type(value)()
        for key, one in value.items():
            made[key] = _plain(one)
        return made
    return type(value)(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def _different(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [name for name in {**old, **new} if old.get(name) != new.get(name)]
