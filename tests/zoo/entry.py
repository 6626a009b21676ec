"""What a network of the zoo is: a name, how to make it, and what it takes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Collection", "Entry", "signals"]

Inputs = tuple[int, ...] | Callable[[int], Any]


def signals(samples: int, *shape: int) -> Tensor:
    """Noise and structure: a coarse random signal that is stretched, and a finer one on top."""
    fine = torch.randn(samples, *shape)
    if len(shape) < 2:
        return fine
    modes = {2: "linear", 3: "bilinear", 4: "trilinear"}
    coarse = torch.randn(samples, shape[0], *(min(4, size) for size in shape[1:]))
    coarse = F.interpolate(coarse, shape[1:], mode=modes[len(shape)], align_corners=False)
    return coarse + 0.3 * fine


@dataclass(frozen=True)
class Entry:
    """A network of the zoo.

    Args:
        library: where it comes from.
        name: unique within the library.
        make: returns the network with weights of its own initialisation.
        inputs: the shape of one sample, or a function from the number of samples to the input.
        refused_for: why a converter has to refuse it, as its author knows; empty if it need not.
        large: converted once, and not for every number of levels anew.
    """

    library: str
    name: str
    make: Callable[[], nn.Module]
    inputs: Inputs
    refused_for: str = ""
    large: bool = False

    def samples(self, count: int) -> Any:
        """An input of so many samples: a tensor, or a tuple of them."""
        return signals(count, *self.inputs) if isinstance(self.inputs, tuple) else self.inputs(count)


class Collection(list[Entry]):
    """The networks of one field, which a decorator collects.

    Example:
        >>> toys = Collection("toys")
        >>> @toys.network((3,))
        ... class Line(nn.Linear):
        ...     def __init__(self):
        ...         super().__init__(3, 1)
        >>> [entry.name for entry in toys]
        ['Line']
    """

    def __init__(self, library: str) -> None:
        super().__init__()
        self.library = library

    def network(self, inputs: Inputs, refused_for: str = "") -> Callable[[Any], Any]:
        """Collect a class without arguments, or a function that returns a network."""

        def collect(make: Any) -> Any:
            self.append(Entry(self.library, make.__name__, make, inputs, refused_for))
            return make

        return collect
