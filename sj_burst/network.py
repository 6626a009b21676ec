"""The spiking network: a graph that knows how to fold time into the batch."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from spikingjelly.activation_based import base
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, fx, nn

from .graph.evaluate import depends_on_input, evaluate_node
from .graph.readout import ReadOut
from .graph.repeat import constant_nodes
from .modules.counting import CountingNode
from .modules.neuron import BurstIFNode, neurons
from .modules.temporal import TemporalModule, TimeFold, temporal_modules, time_folded
from .options import Options
from .utils.checks import check_count
from .utils.inference import device_of
from .utils.inputs import Inputs, as_inputs, bind
from .utils.layout import channels_last
from .utils.outputs import RunningMean, map_tensors

__all__ = ["InputKind", "Presentation", "SpikingNetwork", "check_converted"]


class InputKind(NamedTuple):
    """What calibration has seen of one input: the shape of a sample, and its type."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Presentation:
    """The same input at every step; what does not change from step to step is computed once.

    Of a sequence, every step is shown its own frame, and everything is computed at every step.
    Made by :meth:`SpikingNetwork.present`, from a fresh state. As a context manager it leaves a fresh
    state behind.

    Args:
        graph: of a converted network.
        x: the inputs of a batch.

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

    def __init__(self, graph: fx.GraphModule, x: Inputs) -> None:
        self.graph, self.x = graph, x
        self.done = 0  # steps
        constant = set() if x.sequence else constant_nodes(graph)
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
                values[node] = evaluate_node(self.graph, node, values.__getitem__, self.x.value)
        return {n: channels_last(value) if n in self._read else None for n, value in values.items()}

    def run(self, time_steps: int) -> Any:
        """Output of the next steps ``[T, N, ...]``, or the network's nesting of such outputs.

        What the network's ``readout`` computes is left out: it is for their mean.

        Raises:
            ValueError: if T < 1, or a sequence has no so many steps left.
        """
        check_count(time_steps=time_steps)
        if self.x.steps is not None and self.done + time_steps > self.x.steps:
            raise ValueError(
                f"time_steps={time_steps} after {self.done} steps, and the sequence has {self.x.steps}"
            )
        fold = TimeFold(time_steps, len(self.x))
        shown: list[Tensor] = []
        if self.x.sequence:
            shown = list(bind(self.graph, self.x.frames(self.done, time_steps)).values())
        with time_folded(self.graph, fold):
            out = fx.Interpreter(self.graph).run(*shown, initial_env=dict(self._values))
        self.done += time_steps
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
        inputs: by the name of the argument, what calibration has seen; integers are indices, or pictures
            not yet scaled.
        dead: how many channels of a layer never fired in calibration, for layers that have some.
        readout: from mean outputs to the answer; ``None`` if they are the answer.
        held_only: why inputs must not change from step to step; empty if they may.

    Attributes:
        readout: from mean outputs ``[N, ...]`` to the answer; ``nn.Identity`` if they are the answer.
        folded: whether weights hold the thresholds, which are 1; such a network is of no ANN any more.
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
        inputs: Mapping[str, InputKind] | None = None,
        dead: dict[str, int] | None = None,
        readout: nn.Module | None = None,
        held_only: str = "",
    ) -> None:
        super().__init__()
        self.graph = graph
        self.readout = nn.Identity() if readout is None else readout
        self.options = options or Options()
        self.inputs = dict(inputs or {})
        self.dead = dead or {}
        self.held_only = held_only
        self.measured: tuple[int, float] | None = None
        self.folded = False
        self._step_mode = "s"

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return device_of(self)

    def example(self, samples: int = 1, frames: int | None = None) -> Inputs:
        """Zeros of the sizes that calibration has seen, in the network's precision, where it is.

        Args:
            samples: how many.
            frames: of a sequence of so many; ``None`` for inputs that are held.

        Example:
            >>> import sj_burst
            >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
            >>> snn = sj_burst.convert(ann, [torch.rand(8, 3)], progress=False).double()
            >>> snn.example(2).value
            tensor([[0., 0., 0.],
                    [0., 0., 0.]], dtype=torch.float64)
        """
        found = self._precisions()
        precision = next(iter(found)) if len(found) == 1 else None  # mixed: as it was converted
        leading = (samples,) if frames is None else (samples, frames)
        shown = {
            name: torch.zeros(
                *leading,
                *kind.shape,
                dtype=precision or kind.dtype if kind.dtype.is_floating_point else kind.dtype,
                device=self.device,
            )
            for name, kind in self.inputs.items()
        }
        one = next(iter(shown.values())) if len(shown) == 1 else shown
        return Inputs(one, sequence=frames is not None)

    def forward(self, *x: Tensor, **named: Tensor) -> Any:
        """One step of ``[N, ...]`` in step mode ``"s"``, all steps of ``[T, N, ...]`` in ``"m"``.

        Called as the ANN is: with its inputs in order, or by the names of its arguments. Outputs are
        those before the read-out.
        """
        given = bind(self.graph, self._by_name(x, named))
        if self.step_mode == "s":
            self.check_input(tuple(given.values()))
            return self.graph(*given.values())
        self.check_input(tuple(given.values()), leading="T, N")
        first = next(iter(given.values()))
        fold = TimeFold(*first.shape[:2])
        with time_folded(self.graph, fold):
            out = self.graph(*(t.flatten(0, 1) for t in given.values()))
        return map_tensors(lambda t: t.unflatten(0, fold), out)

    def _by_name(self, x: tuple[Tensor, ...], named: dict[str, Tensor]) -> Any:
        if not named:
            return x
        names = [str(n.target) for n in self.graph.graph.nodes if n.op == "placeholder"]
        if len(x) + len(named) > len(names):
            raise ValueError(
                f"the network takes inputs {names}, got {len(x)} by place and {sorted(named)} by name"
            )
        return dict(zip(names, x, strict=False)) | named

    def run(self, x: Any, time_steps: int) -> Any:
        """Present an input ``[N, ...]`` for T steps from a fresh state; returns ``[T, N, ...]``.

        Several inputs are a tuple of them, or a dict by the names of the arguments.

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

    def answer(self, x: Any, time_steps: int) -> Any:
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

    def present(self, x: Any) -> Presentation:
        """Hold ``x`` from a fresh state, for as many steps and in as many parts as one asks for.

        Args:
            x: a tensor, a tuple of them or a dict by the names of the arguments; or the ``Inputs`` of a
                batch, which may be a sequence of frames.

        Raises:
            ValueError: if ``x`` does not fit what the network was calibrated on, or is a sequence of
                which the network computes something that the mean frame does not tell.
        """
        x = as_inputs(x)
        self.check_input(x.one_frame())
        if x.sequence and self.held_only:
            raise ValueError(self.held_only)
        reset_net(self)
        return Presentation(self.graph, x)

    def check_input(self, x: Any, leading: str = "N") -> None:
        """Raise unless ``x`` has the dimensions, channels and precision of calibration, and time.

        Args:
            x: a tensor, a tuple of them or a dict by the names of the arguments.
            leading: its dimensions before those of a sample.

        Raises:
            ValueError: names what is expected.
        """
        given = bind(self.graph, x)
        for node, tensor in given.items():
            name = f" {node.target}" if len(given) > 1 else ""
            if (kind := self.inputs.get(str(node.target))) is not None:
                self._check_kind(tensor, kind, leading, name)
            if tensor.is_floating_point() and not torch.is_autocast_enabled(tensor.device.type):
                self._check_precision(tensor.dtype)
        counts = len(leading.split(", "))
        if len({tuple(tensor.shape[:counts]) for tensor in given.values()}) > 1:
            shapes = " and ".join(str(list(tensor.shape)) for tensor in given.values())
            raise ValueError(f"inputs {shapes} differ in [{leading}]; give all of them the same samples")

    def _check_kind(self, x: Tensor, kind: InputKind, leading: str, name: str) -> None:
        expected = [*leading.split(", "), *map(str, kind.shape)]
        if x.dim() != len(expected):
            raise ValueError(
                f"the network takes inputs{name} [{', '.join(expected)}] in "
                f"step_mode={self.step_mode!r}, got {list(x.shape)}; run(x, T) presents [N, ...] for T "
                "steps in either mode, and simulate(..., time_dim=1) reads sequences [N, T, ...]"
            )
        # Height, width and length may vary; so may either dimension of a sequence.
        sample = tuple(x.shape[x.dim() - len(kind.shape) :])
        if len(kind.shape) != 2 and sample[:1] != kind.shape[:1]:
            raise ValueError(
                f"the network was calibrated on samples{name} {list(kind.shape)}, got {list(sample)}; "
                "channels or features differ"
            )
        if x.is_floating_point() != kind.dtype.is_floating_point:
            raise ValueError(
                f"the network was calibrated on inputs{name} of {kind.dtype}, got {x.dtype}; prepare "
                "them as in calibration"
            )

    def _check_precision(self, dtype: torch.dtype) -> None:
        computed = self._precisions()
        if computed and dtype not in computed:
            wanted = ", ".join(sorted(map(str, computed)))
            raise ValueError(
                f"the network computes in {wanted}, got an input of {dtype}; convert one of them, with "
                f".to({wanted.split(',')[0]}) say"
            )

    def _precisions(self) -> set[torch.dtype]:
        return {p.dtype for p in self.graph.parameters() if p.is_floating_point()}

    def temporal_modules(self) -> list[TemporalModule]:
        """The modules that carry state from step to step."""
        return temporal_modules(self.graph)

    def _apply(self, fn: Any, recurse: bool = True) -> "SpikingNetwork":
        """Move or cast, but for integers, whose order of rounding is that of float32."""
        exact = any(isinstance(module, CountingNode) for module in self.modules())
        if exact and (dtype := fn(torch.empty(0)).dtype) != torch.float32:
            raise TypeError(f"a network in integers computes the rest in float32, not in {dtype}")
        return super()._apply(fn, recurse)

    def neurons(self) -> dict[str, BurstIFNode]:
        """Burst neurons by layer name, in order of definition."""
        return neurons(self.graph)

    def __repr__(self) -> str:
        options, layers = self.options, self.neurons()
        spikes = ""
        if self.measured is not None:
            spikes = f", {self.measured[1]:.0f} spikes per sample in {self.measured[0]} steps"
        mean = "" if options.burst_allocation == "uniform" else " on average"
        head = (
            f"SpikingNetwork(T={options.time_steps}, Γ={options.max_spikes}{mean}, "
            f"coding={options.coding!r}, {len(layers)} layers of neurons{spikes})"
        )
        rows = [f"  {k}: {type(node).__name__}({node.extra_repr()})" for k, node in layers.items()]
        if isinstance(self.readout, ReadOut):
            rows.append(f"  then, of the mean output: {self.readout!r}")
        return "\n".join([head, *rows])


def check_converted(snn: object, by: str, remedy: str = "", *, folded: bool = False) -> None:
    """Raise unless a network is one that BurstRecipe converted.

    Args:
        snn: what was passed.
        by: who wants it.
        remedy: what else to do with others.
        folded: it may be a network whose weights hold its thresholds.

    Raises:
        TypeError: for other networks.
        ValueError: for one whose weights hold its thresholds.

    Example:
        >>> check_converted(nn.Linear(2, 2), "report")
        Traceback (most recent call last):
        TypeError: report wants a network converted by BurstRecipe, got Linear
    """
    if not isinstance(snn, SpikingNetwork):
        others = f"; {remedy}" if remedy else ""
        raise TypeError(
            f"{by} wants a network converted by BurstRecipe, got {type(snn).__name__}{others}"
        )
    if snn.folded and not folded:
        raise ValueError(
            f"{by} wants a network as it was converted, and the weights of this one hold its thresholds "
            "already; pass the converted network that it was made of"
        )
