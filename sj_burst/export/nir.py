"""A converted network as a graph of the Neuromorphic Intermediate Representation (NIR), and back."""

import importlib
import operator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..conversion.gram import padding_of
from ..graph.evaluate import record
from ..graph.operators import SUMS
from ..graph.repeat import RepeatOverTime
from ..graph.units import FLATTENING
from ..modules.integers import plain_window
from ..modules.neuron import BurstIFNode
from ..modules.scale import Scale
from ..network import SpikingNetwork, check_converted
from .sinabs import SinabsNetwork, sinabs_neurons
from .unit_thresholds import check_unsigned, unit_thresholds

__all__ = ["from_nir", "to_nir"]


def to_nir(snn: SpikingNetwork) -> Any:
    """The same network as a graph of NIR, which tools of many chips read.

    ``nir.write(path, graph)`` makes a file of it. Neurons become ``IF`` of threshold 1, after
    :func:`unit_thresholds`. NIR defines ``IF`` with a hard reset, and knows neither bursts nor an
    initial membrane potential: what an executor has to do besides is in the metadata of every neuron
    (``reset = "subtract"``, ``max_spikes``, ``v_init`` and, if there is one, the constant current
    ``shift``) and of the graph (``time_steps``, ``input``, ``output``). :func:`from_nir` does it.

    Args:
        snn: a converted network of unsigned neurons, average pooling and one output, under direct
            coding.

    Returns:
        A ``nir.NIRGraph``.

    Raises:
        ImportError: without nir; ``pip install 'sj_burst[nir]'``.
        TypeError: for a network that was not converted.
        ValueError: names every layer that NIR cannot express.

    Source: Pedersen et al., "Neuromorphic intermediate representation", Nature Communications 2024.

    Example:
        >>> import sj_burst
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> options = {"inactivated_spikes": "allow", "progress": False}
        >>> snn = sj_burst.convert(ann, [torch.rand(16, 3)], **options)
        >>> sorted(to_nir(snn).nodes)  # doctest: +SKIP
        ['_0', '_1', '_2', 'input', 'output']
    """
    check_converted(snn, "to_nir")
    nir = _nir()
    check_unsigned(snn, "NIR")
    if not isinstance(snn.readout, nn.Identity):
        raise ValueError(
            f"NIR cannot express what follows the mean output, {snn.readout!r}; convert without it, and "
            "with output='spikes'"
        )
    return _Writing(nir, unit_thresholds(snn)).graph()


class _Writing:
    """Walks through a graph with unit thresholds; a sum of values is several edges into one node."""

    def __init__(self, nir: Any, unit: SpikingNetwork) -> None:
        self.nir, self.unit, self.gm = nir, unit, unit.graph
        values = record(self.gm, unit.example(2).value)
        self.dtype = _array(next(self.gm.parameters())).dtype
        self.shapes = {n: tuple(v.shape[1:]) for n, v in values.items() if isinstance(v, Tensor)}
        self.sources: dict[fx.Node, list[str]] = {}  # the nodes of NIR whose sum a value is
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.problems: list[str] = []

    def graph(self) -> Any:
        """The graph of NIR."""
        for node in self.gm.graph.nodes:
            self._write(node)
        if self.problems:
            raise ValueError(f"NIR cannot express {'; nor '.join(dict.fromkeys(self.problems))}")
        metadata = {
            "reset": "subtract",
            "time_steps": self.unit.options.time_steps,
            "input": "held at every step",
            "output": "the mean over the steps",
        }
        return self.nir.NIRGraph(self.nodes, self.edges, metadata=metadata)

    def _write(self, node: fx.Node) -> None:
        shape = np.array(self.shapes.get(node, ()))
        if node.op == "placeholder" and "input" in self.nodes:
            self.problems.append("several inputs; convert a network that takes one tensor")
        elif node.op == "placeholder":
            self._add(node, self.nir.Input(input_type={"input": shape}))
        elif node.op == "output":
            self._output(node)
        elif node.target in SUMS and self._adds(node):
            self.sources[node] = [name for n in node.all_input_nodes for name in self.sources[n]]
        elif node.op == "call_module":
            module = self.gm.get_submodule(str(node.target))
            if isinstance(module, RepeatOverTime | nn.Identity):
                self.sources[node] = self.sources.get(node.all_input_nodes[0], [])
            elif (written := self._node(node, module)) is not None:
                self._add(node, written)
            else:
                self._refuse(node, type(module).__name__)
        elif (written := self._moved(node)) is not None:
            self._add(node, written)
        elif node in self.shapes:
            self._refuse(node, str(getattr(node.target, "__name__", node.target)))

    def _moved(self, node: fx.Node) -> Any:
        """What moves numbers only: reshapes to a row; steps and paddings, as a convolution with ones."""
        sources = [n for n in node.all_input_nodes if n in self.shapes]
        if len(sources) != 1 or node not in self.shapes:
            return None
        before, after = self.shapes[sources[0]], self.shapes[node]
        if node.target in FLATTENING and len(after) == 1:
            return self.nir.Flatten({"input": np.array(before)}, start_dim=0, end_dim=-1)
        if len(before) != 3 or len(after) != 3:
            return None
        if node.target is operator.getitem and (steps := _steps(node.args[1])) is not None:
            return self._ones(before, before[0], 0, steps)
        pads: Any = node.args[1] if len(node.args) > 1 else ()
        if node.target is F.pad and len(pads) == 6 and not any(pads[:4]) and min(pads) >= 0:
            zeros = node.kwargs.get("mode", "constant") == "constant" and not node.kwargs.get("value")
            return self._ones(before, after[0], pads[4], (1, 1)) if zeros else None
        return None

    def _ones(self, before: tuple[int, ...], outputs: int, first: int, steps: tuple[int, ...]) -> Any:
        """Channel c to channel ``first`` + c of ``outputs``, every so many rows and columns."""
        weight = np.zeros((outputs, before[0], 1, 1), self.dtype)
        weight[np.arange(before[0]) + first, np.arange(before[0])] = 1
        bias = np.zeros(outputs, self.dtype)
        return self.nir.Conv2d(
            before[1:], weight, stride=steps, padding=(0, 0), dilation=(1, 1), groups=1, bias=bias
        )

    def _adds(self, node: fx.Node) -> bool:
        """Whether two different values of one shape are added."""
        parts = node.all_input_nodes
        return len(parts) == 2 and not node.kwargs and len({self.shapes.get(n) for n in parts}) == 1

    def _refuse(self, node: fx.Node, what: str) -> None:
        self.problems.append(f"{node.target if node.op == 'call_module' else node.name} ({what})")
        self.sources[node] = []

    def _output(self, node: fx.Node) -> None:
        if not isinstance(node.args[0], fx.Node):
            self.problems.append("several outputs; convert a network that returns one tensor")
            return
        shape = np.array(self.shapes[node.args[0]])
        self._add(node, self.nir.Output(output_type={"output": shape}))

    def _add(self, node: fx.Node, written: Any) -> None:
        name = {"placeholder": "input", "output": "output"}.get(node.op, node.name)
        if node.op not in ("placeholder", "output") and name in ("input", "output"):
            name = f"{name}_layer"
        self.nodes[name] = written
        self.sources[node] = [name]
        sources = [before for n in node.all_input_nodes for before in self.sources.get(n, [])]
        if len(set(sources)) < len(sources):
            self.problems.append(f"{name} (adds a value twice)")
        self.edges += [(before, name) for before in sources]

    def _node(self, node: fx.Node, module: Any) -> Any:
        """The node of NIR for a module; ``None`` if there is none."""
        before, after = self.shapes[node.all_input_nodes[0]], self.shapes[node]
        if isinstance(module, BurstIFNode):
            return self._neuron(module, after)
        if isinstance(module, Scale):
            return self.nir.Scale(scale=_sample(module.factor, after))
        if isinstance(module, nn.Linear) and len(before) == 1:
            return self.nir.Affine(weight=_array(module.weight), bias=_bias(module))
        if isinstance(module, nn.Conv1d | nn.Conv2d) and module.padding_mode == "zeros":
            return self._convolution(module, before)
        if isinstance(module, nn.Flatten) and len(after) == 1:
            return self.nir.Flatten({"input": np.array(before)}, start_dim=0, end_dim=-1)
        if isinstance(module, nn.AvgPool2d | nn.AdaptiveAvgPool2d):
            return self._pool(module, before, after)
        return None

    def _neuron(self, neuron: BurstIFNode, shape: tuple[int, ...]) -> Any:
        metadata: dict[str, Any] = {
            "reset": "subtract",
            "max_spikes": float(neuron.max_spikes),
            "v_init": _sample(neuron.v_init, shape),
        }
        if neuron.shift is not None:
            metadata["shift"] = _sample(neuron.shift, shape)
        ones = np.ones(shape, self.dtype)
        later = "v_reset" in self.nir.IF.__dataclass_fields__  # up to 1.0.4 the reset was a soft one
        reset = {"v_reset": np.zeros_like(ones)} if later else {}
        return self.nir.IF(r=ones, v_threshold=ones, metadata=metadata, **reset)

    def _convolution(self, module: Any, before: tuple[int, ...]) -> Any:
        if (padding := padding_of(module)) is None:  # more zeros on one side
            return None
        kind = self.nir.Conv1d if isinstance(module, nn.Conv1d) else self.nir.Conv2d
        sizes = {"stride": module.stride, "padding": padding, "dilation": module.dilation}
        size: Any = before[1:]
        if isinstance(module, nn.Conv1d):
            size, sizes = size[0], {name: value[0] for name, value in sizes.items()}
        return kind(size, weight=_array(_whole(module)), bias=_bias(module), groups=1, **sizes)

    def _pool(self, pool: Any, before: tuple[int, ...], after: tuple[int, ...]) -> Any:
        """Windows of one size; those of adaptive pooling, for the size of the calibration's samples."""
        if isinstance(pool, nn.AdaptiveAvgPool2d):
            if any(size % outputs for size, outputs in zip(before[1:], after[1:], strict=True)):
                return None
            kernel = np.array(before[1:]) // np.array(after[1:])
            return self.nir.AvgPool2d(kernel_size=kernel, stride=kernel, padding=np.zeros(2, dtype=int))
        if plain_window(pool) is None:
            return None
        sizes = [np.broadcast_to(np.array(n), 2) for n in (pool.kernel_size, pool.stride, pool.padding)]
        return self.nir.AvgPool2d(kernel_size=sizes[0], stride=sizes[1], padding=sizes[2])


def _whole(layer: Any) -> Tensor:
    """Weights of a convolution, zeros between its groups: nir's check of shapes knows no groups."""
    inputs = layer.in_channels // layer.groups
    whole = layer.weight.new_zeros(layer.out_channels, layer.in_channels, *layer.kernel_size)
    parts = layer.weight.detach().chunk(layer.groups)
    for group, (rows, part) in enumerate(zip(whole.chunk(layer.groups), parts, strict=True)):
        rows[:, group * inputs : (group + 1) * inputs] = part
    return whole


def _steps(index: Any) -> tuple[int, ...] | None:
    """The steps of slices over height and width that begin at the first, ``None`` for others."""
    slices = index if isinstance(index, tuple) else ()
    if len(slices) != 4 or any(
        not isinstance(i, slice) or i.start or i.stop is not None for i in slices
    ):
        return None
    steps = tuple(1 if i.step is None else i.step for i in slices)
    return steps[2:] if steps[:2] == (1, 1) else None


def from_nir(graph: Any) -> SinabsNetwork:
    """A network in sinabs' layers of a graph that :func:`to_nir` made: the same spikes, at every step.

    Args:
        graph: a ``nir.NIRGraph``, or the path of a file.

    Returns:
        A plain torch module.

    Raises:
        ImportError: without nir and sinabs; ``pip install 'sj_burst[sinabs]'``.
        ValueError: for neurons whose metadata do not ask for a soft reset, or other kinds of nodes.

    Source: as :func:`to_nir`.

    Example:
        >>> import sj_burst
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> options = {"inactivated_spikes": "allow", "progress": False}
        >>> snn = sj_burst.convert(ann, [torch.rand(16, 3)], **options)
        >>> net = from_nir(to_nir(snn))  # doctest: +SKIP
        >>> net.run(torch.rand(5, 3), time_steps=8).shape  # doctest: +SKIP
        torch.Size([8, 5, 2])
    """
    nir = _nir()
    graph = graph if isinstance(graph, nir.NIRGraph) else nir.read(graph)
    modules: dict[str, nn.Module] = {}
    new = fx.Graph()
    values: dict[str, fx.Node] = {}
    readers = {name: [a for a, b in graph.edges if b == name] for name in graph.nodes}
    for name in _in_order(readers):
        node, parts = graph.nodes[name], [values[source] for source in readers[name]]
        if isinstance(node, nir.Input):
            values[name] = new.placeholder(name)
            continue
        whole = parts[0]
        for part in parts[1:]:
            whole = new.call_function(operator.add, (whole, part))
        if isinstance(node, nir.Output):
            new.output(whole)
            continue
        modules[f"n{name}"] = _module(nir, name, node)
        values[name] = new.call_module(f"n{name}", (whole,))
    return SinabsNetwork(fx.GraphModule(modules, new), nn.Identity()).eval()


def _in_order(readers: dict[str, list[str]]) -> list[str]:
    """Names of nodes, each after those that it reads; the output last."""
    done: list[str] = []
    while len(done) < len(readers):
        ready = [n for n, sources in readers.items() if n not in done and set(sources) <= set(done)]
        if not ready:
            raise ValueError("the graph of NIR has a loop; only feed-forward networks can be read")
        done += ready
    return sorted(done, key=lambda name: name == "output")


def _module(nir: Any, name: str, node: Any) -> nn.Module:
    if isinstance(node, nir.IF):
        return _neurons(name, node)
    if isinstance(node, nir.Affine):
        linear = nn.Linear(*node.weight.shape[::-1])
        return _with_weights(linear, node)
    if isinstance(node, nir.Conv1d | nir.Conv2d):
        kind: Any = nn.Conv1d if isinstance(node, nir.Conv1d) else nn.Conv2d
        outputs, inputs, *kernel = node.weight.shape
        options = {name: _plain(getattr(node, name)) for name in ("stride", "padding", "dilation")}
        groups = int(node.groups)
        layer = kind(inputs * groups, outputs, tuple(kernel), groups=groups, **options)
        return _with_weights(layer, node)
    if isinstance(node, nir.AvgPool2d):
        sizes: Any = [_plain(n) for n in (node.kernel_size, node.stride, node.padding)]
        return nn.AvgPool2d(*sizes)
    if isinstance(node, nir.Flatten):
        return nn.Flatten()
    if isinstance(node, nir.Scale):
        return Scale(torch.as_tensor(node.scale))
    raise ValueError(f"from_nir reads what to_nir writes; {name!r} is a {type(node).__name__}")


def _neurons(name: str, node: Any) -> nn.Module:
    asked = {k: v.decode() if isinstance(v, bytes) else v for k, v in node.metadata.items()}
    plain = np.all(node.v_threshold == 1) and np.all(node.r == 1)
    if asked.get("reset") != "subtract" or not plain:
        raise ValueError(
            f"{name!r} does not ask for a soft reset and a threshold of 1, which is what to_nir writes; "
            "NIR's own IF resets to v_reset"
        )
    shift = asked.get("shift")
    return sinabs_neurons(
        float(asked["max_spikes"]),
        torch.as_tensor(asked["v_init"]),
        None if shift is None else torch.as_tensor(shift),
    )


def _with_weights(layer: Any, node: Any) -> nn.Module:
    layer.weight = nn.Parameter(torch.as_tensor(node.weight), requires_grad=False)
    layer.bias = nn.Parameter(torch.as_tensor(node.bias), requires_grad=False)
    return layer


def _plain(value: Any) -> tuple[int, ...]:
    """A size as torch takes it, from a number or an array."""
    return tuple(int(n) for n in np.atleast_1d(value))


def _array(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()


def _bias(layer: Any) -> np.ndarray:
    outputs = layer.weight.new_zeros(layer.weight.shape[0])
    return _array(outputs if layer.bias is None else layer.bias)


def _sample(value: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter of neurons in the shape of a sample."""
    channels = value.view(-1, *[1] * (len(shape) - 1)) if value.dim() == 1 else value
    return _array(channels.expand(shape).contiguous())


def _nir() -> Any:
    try:
        return importlib.import_module("nir")
    except ImportError as error:
        raise ImportError(f"NIR needs the package nir ({error}); pip install 'sj_burst[nir]'") from error
