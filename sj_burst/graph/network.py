"""The spiking network: a graph that knows how to fold time into the batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import Tensor, fx, nn

from ..checks import check_count
from ..neuron import BurstIFNode, neurons
from ..temporal import TemporalModule, Window
from .presentation import Presentation

__all__ = ["SpikingNetwork"]


class SpikingNetwork(nn.Module, base.StepModule):
    """A converted network.

    Only neurons, pooling and encoders know about time. In step mode ``"s"`` the graph runs as it
    is, one step a call. In ``"m"`` an input ``[T, N, ...]`` is folded to ``[T·N, ...]``, stateless
    operators run on that batch untouched, and stateful modules unfold the time axis themselves.
    SpikingJelly's ``functional.reset_net`` and ``functional.set_step_mode`` work as on any network.

    Args:
        graph: the converted graph.
        options: the recipe's options, for the record and for saving.
        input_shape: shape of one sample, as seen in calibration.
        unseen: how many channels of a layer never fired in calibration, for layers that have some.
        input_dtype: of the inputs in calibration; integers are indices, or pictures not yet scaled.

    Example:
        >>> import torch
        >>> net = SpikingNetwork(fx.symbolic_trace(nn.Sequential(nn.Flatten())), {})
        >>> net.step_mode = "m"
        >>> net(torch.ones(4, 2, 3, 3)).shape
        torch.Size([4, 2, 9])
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        options: dict[str, Any],
        input_shape: tuple[int, ...] = (),
        unseen: dict[str, int] | None = None,
        input_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.graph = graph
        self.options = options
        self.input_shape = input_shape
        self.unseen = unseen or {}
        self.input_dtype = input_dtype
        self._step_mode = "s"

    def forward(self, x: Tensor) -> Tensor:
        """One step of ``[N, ...]`` in step mode ``"s"``, all steps of ``[T, N, ...]`` in ``"m"``."""
        if self.step_mode == "s":
            self.check_input(x)
            return self.graph(x)
        self.check_input(x, leading="T, N")
        steps, batch = x.shape[:2]
        return self._run(x.flatten(0, 1), Window(steps, batch))

    def hold(self, x: Tensor, time_steps: int) -> Tensor:
        """Present the same input ``[N, ...]`` for T more steps; returns ``[T, N, ...]``.

        What comes before the first neuron is computed once. The membrane potentials go on from
        where they are, so T may be cut into chunks at will. Works in either step mode.
        """
        check_count(time_steps=time_steps)
        self.check_input(x)
        return self._run(x, Window(time_steps, len(x)))

    def check_input(self, x: Tensor, leading: str = "N") -> None:
        """Raise unless ``x`` has the dimensions, channels and precision of calibration, and time.

        Raises:
            ValueError: names what is expected.
        """
        expected = [*leading.split(", "), *map(str, self.input_shape)]
        if self.input_shape and x.dim() != len(expected):
            raise ValueError(
                f"the network takes inputs [{', '.join(expected)}] in step_mode={self.step_mode!r}, "
                f"got {list(x.shape)}; hold(x, T) presents [N, ...] for T steps in either mode"
            )
        # Height, width and length may vary; so may either dimension of a sequence.
        sample = tuple(x.shape[x.dim() - len(self.input_shape) :])
        if len(self.input_shape) != 2 and sample[:1] != self.input_shape[:1]:
            raise ValueError(
                f"the network was calibrated on samples {list(self.input_shape)}, got {list(sample)}; "
                "channels or features differ"
            )
        if self.input_shape and x.is_floating_point() != self.input_dtype.is_floating_point:
            raise ValueError(
                f"the network was calibrated on inputs of {self.input_dtype}, got {x.dtype}; prepare "
                "them as in calibration"
            )
        if x.is_floating_point() and not torch.is_autocast_enabled(x.device.type):
            self._check_precision(x.dtype)

    def _check_precision(self, dtype: torch.dtype) -> None:
        computed = {p.dtype for p in self.graph.parameters() if p.is_floating_point()}
        if computed and dtype not in computed:
            wanted = ", ".join(sorted(map(str, computed)))
            raise ValueError(
                f"the network computes in {wanted}, got an input of {dtype}; convert one of them, with "
                f".to({wanted.split(',')[0]}) say"
            )

    def present(self, x: Tensor) -> Presentation:
        """Hold ``x`` for as many steps, in as many parts, as :class:`Presentation` is asked for."""
        return Presentation(self, x)

    def _run(self, x: Tensor, window: Window) -> Tensor:
        with self.window(window):
            return self.graph(x).unflatten(0, window)

    @contextmanager
    def window(self, window: Window) -> Iterator[None]:
        """While open, the stateful modules unfold ``window`` from the batch of ``self.graph``."""
        modules = self.temporal_modules()
        modes = [module.step_mode for module in modules]
        try:
            for module in modules:
                module.window, module.step_mode = window, "m"
            yield
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.window, module.step_mode = None, mode

    def temporal_modules(self) -> list[TemporalModule]:
        """The modules that carry state from step to step."""
        return [m for m in self.graph.modules() if isinstance(m, TemporalModule)]

    def neurons(self) -> dict[str, BurstIFNode]:
        """Burst neurons by layer name, in order of definition."""
        return neurons(self.graph)
