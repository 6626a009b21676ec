"""The spiking network: a graph that knows how to fold time into the batch."""

from collections.abc import Iterator
from typing import Any

import torch
from spikingjelly.activation_based import base
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, fx, nn

from .graph.evaluate import depends_on_input, evaluate_node
from .graph.readout import ReadOut
from .graph.repeat import constant_nodes
from .modules.neuron import BurstIFNode, neurons
from .modules.temporal import TemporalModule, TimeFold, temporal_modules, time_folded
from .options import Options
from .utils.checks import check_count
from .utils.inference import device_of
from .utils.layout import channels_last
from .utils.outputs import RunningMean, map_tensors

__all__ = ["Presentation", "SpikingNetwork"]


class Presentation:
    """The same input at every step; what does not change from step to step is computed once.

    Made by :meth:`SpikingNetwork.present`, from a fresh state. As a context manager it leaves a fresh
    state behind.

    Args:
        graph: of a converted network.
        x: input ``[N, ...]``.

    Example:
        >>> import sj_burst
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        >>> snn = sj_burst.convert(ann, [torch.rand(8, 3)], progress=False)
        >>> with snn.present(torch.rand(5, 3)) as shown:
        ...     first = shown.run(2)
        ...     shown.keep(torch.tensor([True, False, True, False, False]))
        ...     then = shown.run(2)
        >>> first.shape, then.shape
        (torch.Size([2, 5, 4]), torch.Size([2, 2, 4]))
    """

    def __init__(self, graph: fx.GraphModule, x: Tensor) -> None:
        self.graph, self.x = graph, x
        constant = constant_nodes(graph)
        self._depending = depends_on_input(graph) & constant
        # What later nodes read; the other constants are only marked as done.
        self._read = {n for n in constant if set(n.users) - constant}
        self._constant = [n for n in graph.graph.nodes if n in constant]
        self._values = self._evaluate()

    def __enter__(self) -> "Presentation":
        return self

    def __exit__(self, *_: object) -> None:
        reset_net(self.graph)

    def _evaluate(self) -> dict[fx.Node, Any]:
        values: dict[fx.Node, Any] = {}
        # Two steps: what is constant over them says so.
        with time_folded(self.graph, TimeFold(2, len(self.x))):
            for node in self._constant:
                values[node] = evaluate_node(self.graph, node, values.__getitem__, self.x)
        return {n: channels_last(value) if n in self._read else None for n, value in values.items()}

    def run(self, time_steps: int) -> Any:
        """Output of the next steps ``[T, N, ...]``, or the network's nesting of such outputs.

        What the network's ``readout`` computes is left out: it is for their mean.
        """
        check_count(time_steps=time_steps)
        fold = TimeFold(time_steps, len(self.x))
        with time_folded(self.graph, fold):
            out = fx.Interpreter(self.graph).run(self.x, initial_env=dict(self._values))
        return map_tensors(lambda t: t.unflatten(0, fold), out)

    def chunks(self, time_steps: int, chunk: int) -> Iterator[Any]:
        """Outputs of T steps in parts of at most ``chunk``, so that memory does not grow with T."""
        for first in range(0, time_steps, chunk):
            yield self.run(min(chunk, time_steps - first))

    def keep(self, samples: Tensor) -> None:
        """Go on with these samples only, a boolean mask ``[N]``; their state goes on too."""
        self.x = self.x[samples]
        for module in temporal_modules(self.graph):
            for name, state in module.named_memories():
                if isinstance(state, Tensor):
                    setattr(module, name, state[samples])
        followed = self._read & self._depending
        if all(isinstance(self._values[n], Tensor) for n in followed):
            for n in followed:
                self._values[n] = self._values[n][samples]
        else:  # a size, say, which follows the batch
            self._values = self._evaluate()


class SpikingNetwork(nn.Module, base.StepModule):
    """A converted network.

    Only neurons, pooling and encoders know about time. In step mode ``"s"`` the graph runs as it
    is, one step a call. In ``"m"`` an input ``[T, N, ...]`` is folded to ``[T·N, ...]``, stateless
    operators run on that batch untouched, and stateful modules unfold the time axis themselves.
    SpikingJelly's ``functional.reset_net`` and ``functional.set_step_mode`` work as on any network,
    and by its convention the state lives from call to call until ``reset_net``.

    What comes after the last neuron and is no affine map, a softmax say, is applied to the mean over
    time of the outputs before it. A call, :meth:`run` and :meth:`present` return these, step by step,
    in the nesting of the ANN's outputs: in the place of an output that the read-out computes stands
    the value that it is computed from, or a tuple of them if there are several. :meth:`answer` returns
    what the ANN returns.

    Args:
        graph: the converted graph.
        options: the conversion's options, for the record and for saving.
        input_shape: shape of one sample, as seen in calibration.
        dead: how many channels of a layer never fired in calibration, for layers that have some.
        input_dtype: of the inputs in calibration; integers are indices, or pictures not yet scaled.
        readout: from mean outputs to the answer; ``None`` if they are the answer.

    Attributes:
        readout: from mean outputs ``[N, ...]`` to the answer; ``nn.Identity`` if they are the answer.
        measured: T and spikes per sample of the last :func:`sj_burst.simulate`; ``None`` before.

    Example:
        >>> net = SpikingNetwork(fx.symbolic_trace(nn.Sequential(nn.Flatten())))
        >>> net.step_mode = "m"
        >>> net(torch.ones(4, 2, 3, 3)).shape
        torch.Size([4, 2, 9])
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        options: Options | None = None,
        input_shape: tuple[int, ...] = (),
        dead: dict[str, int] | None = None,
        input_dtype: torch.dtype = torch.float32,
        readout: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.graph = graph
        self.readout = nn.Identity() if readout is None else readout
        self.options = options or Options()
        self.input_shape = input_shape
        self.dead = dead or {}
        self.input_dtype = input_dtype
        self.measured: tuple[int, float] | None = None
        self._step_mode = "s"

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return device_of(self)

    def forward(self, x: Tensor) -> Any:
        """One step of ``[N, ...]`` in step mode ``"s"``, all steps of ``[T, N, ...]`` in ``"m"``.

        Outputs are those before the read-out.
        """
        if self.step_mode == "s":
            self.check_input(x)
            return self.graph(x)
        self.check_input(x, leading="T, N")
        steps, batch = x.shape[:2]
        fold = TimeFold(steps, batch)
        with time_folded(self.graph, fold):
            return map_tensors(lambda t: t.unflatten(0, fold), self.graph(x.flatten(0, 1)))

    def run(self, x: Tensor, time_steps: int) -> Any:
        """Present an input ``[N, ...]`` for T steps from a fresh state; returns ``[T, N, ...]``.

        A network that returns tuples, lists or dicts returns the same of such tensors. They are the
        outputs before the read-out, ``snn.readout(mean over T)`` is the answer.
        What comes before the first neuron is computed once. Works in either step mode, and leaves a
        fresh state. Who wants to go on from where the membrane potentials are uses :meth:`present`.

        Raises:
            ValueError: if T < 1, or ``x`` does not fit what the network was calibrated on.

        Example:
            >>> import sj_burst
            >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
            >>> snn = sj_burst.convert(ann, [torch.rand(8, 3)], progress=False)
            >>> x = torch.rand(5, 3)
            >>> torch.equal(snn.run(x, 4), snn.run(x, 4))
            True
        """
        check_count(time_steps=time_steps)
        with self.present(x) as shown:
            return shown.run(time_steps)

    def answer(self, x: Tensor, time_steps: int) -> Any:
        r"""The answer to an input ``[N, ...]`` after T steps, as the ANN returns it ``[N, ...]``.

        .. math::
            r\Big(\frac1T \sum_{t \le T} o(t)\Big)

        with the outputs o(t) of :meth:`run` and the read-out r.

        Raises:
            ValueError: if T < 1, or ``x`` does not fit what the network was calibrated on.

        Example:
            >>> import sj_burst
            >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Softmax(dim=1))
            >>> snn = sj_burst.convert(ann, [torch.rand(8, 3)], progress=False)
            >>> torch.allclose(snn.answer(torch.rand(5, 3), 4).sum(1), torch.ones(5))
            True
        """
        mean = RunningMean()
        mean.add(self.run(x, time_steps))
        return self.readout(mean.value())

    def present(self, x: Tensor) -> Presentation:
        """Hold ``x`` from a fresh state, for as many steps and in as many parts as one asks for.

        Raises:
            ValueError: if ``x`` does not fit what the network was calibrated on.
        """
        self.check_input(x)
        reset_net(self)
        return Presentation(self.graph, x)

    def check_input(self, x: Tensor, leading: str = "N") -> None:
        """Raise unless ``x`` has the dimensions, channels and precision of calibration, and time.

        Raises:
            ValueError: names what is expected.
        """
        expected = [*leading.split(", "), *map(str, self.input_shape)]
        if self.input_shape and x.dim() != len(expected):
            raise ValueError(
                f"the network takes inputs [{', '.join(expected)}] in step_mode={self.step_mode!r}, "
                f"got {list(x.shape)}; run(x, T) presents [N, ...] for T steps in either mode"
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

    def temporal_modules(self) -> list[TemporalModule]:
        """The modules that carry state from step to step."""
        return temporal_modules(self.graph)

    def neurons(self) -> dict[str, BurstIFNode]:
        """Burst neurons by layer name, in order of definition."""
        return neurons(self.graph)

    def __repr__(self) -> str:
        options, layers = self.options, self.neurons()
        spikes = ""
        if self.measured is not None:
            spikes = f", {self.measured[1]:.0f} spikes per sample in {self.measured[0]} steps"
        head = (
            f"SpikingNetwork(T={options.time_steps}, Γ={options.max_spikes}, coding={options.coding!r}, "
            f"{len(layers)} layers of neurons{spikes})"
        )
        rows = [f"  {k}: {type(node).__name__}({node.extra_repr()})" for k, node in layers.items()]
        if isinstance(self.readout, ReadOut):
            rows.append(f"  then, of the mean output: {self.readout!r}")
        return "\n".join([head, *rows])
