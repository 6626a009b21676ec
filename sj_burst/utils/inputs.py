"""What a batch shows to a network: one tensor or several, held or one frame a step."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from .outputs import map_tensors, tensors_of

__all__ = ["Inputs", "Value", "as_inputs", "batches_with", "bind", "call", "join", "map_floats", "rows"]

# What a network is called with: one tensor, several in the order of its arguments, or by their names.
Value = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


def call(net: nn.Module, value: Any) -> Any:
    """Call a network with one tensor, a tuple of them, or a dict by the names of its arguments.

    Example:
        >>> call(nn.Bilinear(1, 1, 1, bias=False).requires_grad_(False), (torch.zeros(1, 1),) * 2)
        tensor([[0.]])
    """
    if isinstance(value, Mapping):
        return net(**value)
    return net(*value) if isinstance(value, tuple) else net(value)


def bind(gm: fx.GraphModule, value: Any) -> dict[fx.Node, Tensor]:
    """The tensor of every placeholder of a graph, in order.

    Raises:
        ValueError: unless there is one for each.

    Example:
        >>> gm = fx.symbolic_trace(nn.Identity())
        >>> bind(gm, (torch.zeros(1), torch.zeros(1)))
        Traceback (most recent call last):
        ValueError: the network takes one input, got 2; yield (input, target) batches
    """
    nodes = [n for n in gm.graph.nodes if n.op == "placeholder"]
    names = [str(n.target) for n in nodes]
    if isinstance(value, Mapping):
        if value.keys() != set(names):
            raise ValueError(f"the network takes inputs named {names}, got {sorted(value)}")
        return {n: value[str(n.target)] for n in nodes}
    given = value if isinstance(value, tuple) else (value,)
    if len(given) != len(nodes):
        if len(nodes) == 1:
            raise ValueError(
                f"the network takes one input, got {len(given)}; yield (input, target) batches"
            )
        raise ValueError(
            f"the network takes {len(nodes)} inputs ({', '.join(names)}), got {len(given)}; yield "
            f"(({', '.join(names)}), target) batches, or (({', '.join(names)}),) without a target"
        )
    return dict(zip(nodes, given, strict=True))


def batches_with(images: int, sizes: Iterable[int]) -> int:
    """How many of the first batches, of these sizes, hold so many images, or all do together.

    Example:
        >>> batches_with(5, [4, 4, 4]), batches_with(50, [4, 4, 4])
        (2, 3)
    """
    batches = held = 0
    for size in sizes:
        batches, held = batches + 1, held + size
        if held >= images:
            break
    return batches


def rows(value: Any) -> int:
    """The number of samples.

    Example:
        >>> rows((torch.zeros(3, 2), torch.zeros(3)))
        3
    """
    return len(next(iter(tensors_of(value).values())))


def join(values: Sequence[Any]) -> Any:
    """The samples of several values, one after the other.

    Example:
        >>> join([(torch.zeros(1), torch.ones(1)), (torch.zeros(1), torch.ones(1))])
        (tensor([0., 0.]), tensor([1., 1.]))
    """
    if isinstance(values[0], Mapping):
        return {key: join([value[key] for value in values]) for key in values[0]}
    if isinstance(values[0], tuple):
        return tuple(join(parts) for parts in zip(*values, strict=True))
    return torch.cat(list(values))


def map_floats(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply a function to the tensors of real numbers, and leave integers alone.

    Example:
        >>> map_floats(lambda t: -t, (torch.ones(1), torch.tensor([1])))
        (tensor([-1.]), tensor([1]))
    """
    return map_tensors(lambda t: function(t) if t.is_floating_point() else t, value)


class Inputs:
    """The inputs of one batch, with one row a sample.

    Args:
        value: tensors ``[N, ...]``, or ``[N, T, ...]`` of a sequence.
        sequence: the inputs change from step to step.

    Example:
        >>> x = Inputs((torch.zeros(5, 3), torch.zeros(5, 2)))
        >>> len(x), len(x[:2]), x.steps
        (5, 2, None)
        >>> x = Inputs(torch.tensor([[[1.0], [3.0]]]), sequence=True)  # one sample of two frames
        >>> x.steps, x.picture().tolist(), x.frames(0, 2).tolist()
        (2, [[2.0]], [[1.0], [3.0]])
    """

    def __init__(self, value: Any, sequence: bool = False) -> None:
        self.value, self.sequence = value, sequence

    def __len__(self) -> int:
        return rows(self.value)

    def __getitem__(self, samples: Any) -> "Inputs":
        """Some samples: a slice, or a boolean mask ``[N]``."""
        return Inputs(map_tensors(lambda t: t[samples], self.value), self.sequence)

    def to(self, device: torch.device | str) -> "Inputs":
        """The same on another device."""
        return Inputs(map_tensors(lambda t: t.to(device), self.value), self.sequence)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in order."""
        return list(tensors_of(self.value).values())

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.tensors[0].device

    @property
    def steps(self) -> int | None:
        """T of a sequence; ``None`` if the inputs are held."""
        return self.tensors[0].shape[1] if self.sequence else None

    def picture(self) -> Any:
        """What an ANN is given ``[N, ...]``: the inputs, or the mean frame of a sequence."""
        return map_tensors(lambda t: t.mean(1), self.value) if self.sequence else self.value

    def frames(self, first: int, steps: int) -> Any:
        """Some steps of a sequence, folded into the batch ``[steps·N, ...]``."""
        part = slice(first, first + steps)
        return map_tensors(lambda t: t[:, part].transpose(0, 1).flatten(0, 1), self.value)

    def one_frame(self) -> Any:
        """What arrives in one step ``[N, ...]``."""
        return self.frames(0, 1) if self.sequence else self.value


def as_inputs(x: Any) -> Inputs:
    """Inputs as they are; tensors as inputs that are held."""
    return x if isinstance(x, Inputs) else Inputs(x)
