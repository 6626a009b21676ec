"""Reading batches from whatever a user passes as a loader: the one place that interprets a batch.

A batch is ``inputs``, ``(inputs,)`` or ``(inputs, target)``. The inputs are a tensor ``[N, ...]``; for a
network that takes several, a tuple or list of them in the order of its arguments, or a dict by their
names. So ``[x1, x2]`` is an input and its target, and ``([x1, x2],)`` are two inputs without one.
With ``time_dim`` every input is a sequence of frames, ``[T, N, ...]`` (0) or ``[N, T, ...]`` (1).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .inputs import Inputs
from .outputs import map_tensors

__all__ = [
    "Pictures",
    "batches",
    "check_loader",
    "check_one_size",
    "check_time_dim",
    "first_samples",
    "length_of",
    "split_batch",
]


def check_loader(loader: Any, name: str = "loader") -> None:
    """Raise unless ``loader`` can be iterated, more than once, over batches.

    Raises:
        TypeError: naming the remedy.

    Example:
        >>> check_loader(iter([1, 2]), "calibration_loader")
        Traceback (most recent call last):
        TypeError: calibration_loader can be read only once (list_iterator); pass ...
    """
    if isinstance(loader, Tensor):
        raise TypeError(f"{name} is a tensor; pass a DataLoader, or a list of batches [tensor]")
    if not isinstance(loader, Iterable):
        raise TypeError(f"{name} must be a DataLoader or a list of batches, got {type(loader).__name__}")
    if isinstance(loader, Iterator):
        raise TypeError(
            f"{name} can be read only once ({type(loader).__name__}); pass a DataLoader or list(...)"
        )


def length_of(loader: Any) -> int | None:
    """How many batches it yields; ``None`` if it does not say, as a DataLoader over a stream.

    Example:
        >>> length_of([torch.zeros(2, 1)]), length_of(object())
        (1, None)
    """
    try:
        return len(loader)
    except TypeError:
        return None


def check_time_dim(time_dim: object) -> None:
    """Raise unless it is ``None``, 0 or 1.

    Raises:
        ValueError: says what each means.

    Example:
        >>> check_time_dim(2)
        Traceback (most recent call last):
        ValueError: time_dim must be 0 for inputs [T, N, ...], 1 for [N, T, ...], or None for ...
    """
    if time_dim is not None and (isinstance(time_dim, bool) or time_dim not in (0, 1)):
        raise ValueError(
            "time_dim must be 0 for inputs [T, N, ...], 1 for [N, T, ...], or None for inputs that are "
            f"held, got {time_dim!r}"
        )


def split_batch(
    batch: Any, name: str = "loader", time_dim: int | None = None, time_steps: int | None = None
) -> tuple[Inputs, Any]:
    """Inputs and target (or None) of one batch.

    Args:
        batch: see the top of this file.
        name: of the loader, for errors.
        time_dim: which dimension of the inputs is time; ``None`` if they are held.
        time_steps: T that sequences must have; ``None`` for any.

    Raises:
        TypeError: for any other batch.
        ValueError: for an empty batch, NaN or infinite inputs, or sequences of another length.

    Example:
        >>> x, target = split_batch((torch.zeros(2, 3), torch.tensor([0, 1])))
        >>> x.value.shape, target
        (torch.Size([2, 3]), tensor([0, 1]))
        >>> x, target = split_batch(([torch.zeros(2, 3), torch.zeros(2, 1)],))
        >>> len(x.tensors), target
        (2, None)
    """
    value, target = batch, None
    if isinstance(batch, tuple | list) and batch:
        value, target = batch[0], batch[1] if len(batch) > 1 else None
    if isinstance(value, list | tuple) and value:
        value = tuple(value)
    elif isinstance(value, Mapping) and value:
        value = dict(value)
    tensors = [value]
    if isinstance(value, tuple | dict) and value:
        tensors = list(value.values() if isinstance(value, dict) else value)
    for x in tensors:
        _check_tensor(x, value, name, batch)
    sequence = time_dim is not None
    if sequence:
        _check_sequences(tensors, batch, name, time_dim, time_steps)
        if time_dim == 0:
            value = map_tensors(lambda t: t.transpose(0, 1), value)
    inputs = Inputs(value, sequence)
    if len(sizes := {len(x) for x in inputs.tensors}) > 1:
        raise ValueError(f"{name} yields inputs of {sorted(sizes)} samples in one batch")
    if len(inputs) == 0:
        raise ValueError(f"{name} yields an empty batch; leave empty batches out")
    return inputs, target


def _check_tensor(x: Any, value: Any, name: str, batch: Any) -> None:
    if not isinstance(x, Tensor):
        inner = f" with a {type(x).__name__} among the inputs" if x is not value else ""
        raise TypeError(
            f"{name} yields {type(batch).__name__} batches{inner}; it must yield tensors or (input, "
            "target) tuples whose input is one tensor, or a tuple, list or dict of tensors for a "
            "network that takes several: adapt it with a collate_fn"
        )
    if x.layout != torch.strided:
        raise TypeError(f"{name} yields tensors of layout {x.layout}; make them dense with .to_dense()")
    if x.dim() == 0 or len(x) == 0:
        raise ValueError(f"{name} yields an empty batch; leave empty batches out")
    if x.is_floating_point() and not x.isfinite().all():
        raise ValueError(f"{name} yields NaN or infinite inputs; leave them out")


def _check_sequences(
    tensors: list[Tensor], batch: Any, name: str, time_dim: Any, time_steps: int | None
) -> None:
    layout = "[T, N, ...]" if time_dim == 0 else "[N, T, ...]"
    for x in tensors:
        if x.dim() < 3:
            raise ValueError(
                f"time_dim={time_dim} wants inputs {layout}, and {name} yields {list(x.shape)}; leave "
                "time_dim out for inputs that are held"
            )
        if not x.is_floating_point():
            raise ValueError(
                f"{name} yields sequences of {x.dtype}; their mean frame needs real numbers: call "
                ".float() in the loader"
            )
    lengths = {x.shape[time_dim] for x in tensors}
    steps = time_steps or tensors[0].shape[time_dim]
    if lengths != {steps}:
        given = " and ".join(map(str, sorted(lengths)))
        raise ValueError(
            f"{name} yields sequences of {given} steps (time_dim={time_dim}), and time_steps is "
            f"{steps}; a frame is one step: pass time_steps={max(lengths)}, or another time_dim"
        )
    # spikingjelly.datasets.pad_sequence_collate adds the lengths before padding.
    lengths_before = batch[2] if isinstance(batch, tuple | list) and len(batch) > 2 else None
    if isinstance(lengths_before, Tensor) and not (lengths_before == steps).all():
        raise ValueError(
            f"{name} yields sequences that were padded to {steps} steps; a network would go on without "
            "input: integrate events to a fixed number of frames (split_by='number')"
        )


def batches(
    loader: Iterable[Any],
    name: str = "loader",
    time_dim: int | None = None,
    time_steps: int | None = None,
) -> Iterator[tuple[Inputs, Any]]:
    """Inputs and targets of all batches; see :func:`split_batch`.

    Raises:
        ValueError: if there is no batch.

    Example:
        >>> next(batches([], "calibration_loader"))
        Traceback (most recent call last):
        ValueError: calibration_loader is empty; it must yield at least one batch
    """
    check_time_dim(time_dim)
    empty = True
    for batch in loader:
        empty = False
        yield split_batch(batch, name, time_dim, time_steps)
    if empty:
        raise ValueError(f"{name} is empty; it must yield at least one batch")


def check_one_size(first: Inputs, x: Inputs, name: str) -> None:
    """Raise unless two batches of a loader are of inputs of one shape.

    Raises:
        ValueError: names both.
    """
    shapes, now = ([list(t.shape[1:]) for t in part.tensors] for part in (first, x))
    if shapes != now:
        one, other = (found[0] if len(found) == 1 else found for found in (shapes, now))
        raise ValueError(f"{name} yields inputs of shapes {one} and {other}; bring them to one")


def first_samples(
    loader: Iterable[Any], samples: int, name: str = "loader", time_dim: int | None = None
) -> list[Inputs]:
    """The first ``samples`` inputs of a loader, in its own batches.

    Raises:
        ValueError: if there is no batch, or inputs differ in shape.

    Example:
        >>> [len(x) for x in first_samples([torch.zeros(3, 1), torch.zeros(3, 1)], 4)]
        [3, 1]
    """
    taken: list[Inputs] = []
    missing = samples
    for x, _ in batches(loader, name, time_dim):
        taken.append(x[:missing])
        check_one_size(taken[0], x, name)
        missing -= len(taken[-1])
        if missing == 0:
            break
    return taken


class Pictures:
    """What a loader yields, as inputs that are held: of a sequence, its mean frame or each.

    Args:
        loader: of batches.
        name: of the loader, for errors.
        time_dim: which dimension of the inputs is time; ``None`` if they are held.
        frames: ``"mean"`` for the mean frame of each sequence, ``"each"`` for every frame by itself.

    Raises:
        ValueError: for another ``time_dim`` or ``frames``.

    Example:
        >>> sequences = [torch.zeros(2, 5, 3)]  # [N, T, ...]
        >>> [x.shape for (x,) in Pictures(sequences, "loader", 1, "each")]
        [torch.Size([10, 3])]
    """

    def __init__(
        self, loader: Iterable[Any], name: str, time_dim: int | None = None, frames: str = "mean"
    ) -> None:
        check_time_dim(time_dim)
        if frames not in ("mean", "each"):
            raise ValueError(f"frames must be 'mean' or 'each', got {frames!r}")
        self.loader, self.name, self.time_dim, self.frames = loader, name, time_dim, frames

    def __iter__(self) -> Iterator[tuple[Any]]:
        for x, _ in batches(self.loader, self.name, self.time_dim):
            if x.sequence and self.frames == "each":
                yield (map_tensors(lambda t: t.flatten(0, 1), x.value),)
            else:
                yield (x.picture(),)
