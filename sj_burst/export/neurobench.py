"""A converted network for NeuroBench, whose metrics count what the spikes cost."""

import copy
import importlib
from typing import Any

import torch
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, fx, nn

from ..graph.evaluate import record
from ..graph.operators import AVERAGE_POOLS, TRANSPOSED_CONVOLUTIONS, WEIGHTED
from ..graph.trace import is_module, unused_name
from ..graph.units import passed_on, sends_counts
from ..modules.integers import plain_window
from ..modules.neuron import BurstIFNode
from ..network import SpikingNetwork, check_converted
from ..simulation.spikes import SOURCES
from ..utils.checks import check_count
from .unit_thresholds import unit_thresholds

__all__ = ["Bits", "ShownSpikes", "UnfoldedLayer", "to_neurobench"]


class Bits(nn.Module):
    """Counts as ones, minus ones and zeros: row k says which neurons send a k-th spike.

    Example:
        >>> Bits(3)(torch.tensor([2.0, 0.0, -1.0])).tolist()
        [[1.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """

    def __init__(self, largest: int) -> None:
        super().__init__()
        self.largest = largest

    def forward(self, counts: Tensor) -> Tensor:
        """``[...]`` to ``[largest, ...]``."""
        levels = torch.arange(1, self.largest + 1, device=counts.device)
        reached = counts.abs() >= levels.view(-1, *[1] * counts.dim())
        return torch.where(reached, counts.sign(), 0.0)


class ShownSpikes(nn.Module):
    """Passes counts on, and shows hooks of ``bits`` the single spikes that they are made of.

    Args:
        largest: Γ.
    """

    def __init__(self, largest: int) -> None:
        super().__init__()
        self.bits = Bits(largest)

    def forward(self, counts: Tensor) -> Tensor:
        """Counts as they are."""
        self.bits(counts.round())
        return counts


class UnfoldedLayer(nn.Module):
    """A layer without bias that reads counts spike by spike, as a chip that knows no bursts would.

    Args:
        layer: linear or convolutional.
        grain: what a count weighs where it is read: 1, or less after average pooling.
    """

    def __init__(self, layer: Any, grain: float) -> None:
        super().__init__()
        self.layer, self.grain = copy.deepcopy(layer), grain
        bias = self.layer.bias
        self.layer.bias = None
        last = isinstance(layer, nn.Linear)
        shape = () if bias is None else (-1,) if last else (-1, *[1] * len(layer.kernel_size))
        self.bias = None if bias is None else nn.Parameter(bias.detach().view(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Counts times ``grain`` to currents."""
        counts = (x / self.grain).round()
        if x.numel() and (counts * self.grain - x).abs().amax() > 1e-3 * self.grain:
            raise ValueError(
                f"counts before {self.layer} do not weigh {self.grain:.3g}; give the size of pictures "
                "that the network was calibrated on"
            )
        total: Any = 0.0
        largest = int(counts.abs().amax()) if counts.numel() else 1
        for spikes in Bits(max(1, largest))(counts):
            total = total + self.layer(spikes)
        total = total * self.grain
        return total if self.bias is None else total + self.bias


def to_neurobench(snn: SpikingNetwork, time_steps: int | None = None) -> Any:
    """The same network as a model of NeuroBench, for its ``Benchmark`` and its metrics.

    A call returns the answer after T steps. Bursts are unfolded: layers read them spike by spike, and
    what their neurons send is seen as Γ rows of single spikes a step. So ``SynapticOperations`` finds
    as ``Effective_ACs`` the ``synops`` of :func:`sj_burst.synops` (but for weights that are zero, which
    it leaves out, and for spikes that negative ones cancel in a window of average pooling), and
    ``ActivationSparsity`` is 1 − spikes/(T·Γ·neurons). What no spikes reach, the first layer above all,
    it counts as ``Effective_MACs``, once a sample.

    Args:
        snn: a converted network; stays as it is, but for its reset state.
        time_steps: T; ``None`` for the one it was converted for.

    Returns:
        A ``NeuroBenchModel``.

    Raises:
        ImportError: without neurobench; ``pip install 'sj_burst[neurobench]'``.
        TypeError: for a network that was not converted.
        ValueError: if T < 1, or Γ is infinite; names every layer whose input cannot be shown as single
            spikes: behind encoders, leaky neurons, spike calibration, interpolation, windows of several
            sizes, sums or rows of counts that weigh different things, or a transposed convolution, which
            NeuroBench does not know; or if spikes are expected.

    Source: Yik et al., "The neurobench framework", Nature Communications 2025.

    Example:
        >>> import sj_burst
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> snn = sj_burst.convert(ann, [torch.rand(16, 3)], progress=False)
        >>> to_neurobench(snn)(torch.rand(5, 3)).shape  # doctest: +SKIP
        torch.Size([5, 2])
    """
    check_converted(snn, "to_neurobench")
    steps = snn.options.time_steps if time_steps is None else time_steps
    check_count(time_steps=steps)
    if endless := [n for n, m in snn.neurons().items() if not m.max_spikes < 2**24]:
        raise ValueError(f"max_spikes of {endless[0]!r} has no bound; convert with a finite one")
    if expecting := [
        n for n, m in snn.graph.named_modules() if getattr(m, "expected", None) is not None
    ]:
        raise ValueError(
            f"NeuroBench counts all spikes of {expecting[0]!r}, some of which are expected and not "
            "sent; convert with expected_spikes='none'"
        )
    unfolded = _unfold(unit_thresholds(snn))
    base: Any = _neurobench().NeuroBenchModel

    class Model(base):
        """What NeuroBench calls, and where it looks for layers."""

        def __init__(self) -> None:
            super().__init__()
            self.snn = unfolded
            self.activation_modules = [Bits]

        def __call__(self, batch: Any) -> Any:
            with torch.no_grad():
                return self.snn.answer(batch, steps)

        def __net__(self) -> nn.Module:
            return self.snn.graph

    return Model()


def _unfold(unit: SpikingNetwork) -> SpikingNetwork:
    """Put the modules above in the places of neurons, and of layers that read counts."""
    gm = unit.graph
    values = record(gm, unit.example(2).value)
    reset_net(unit)
    shapes = {n: v.shape for n, v in values.items() if isinstance(v, Tensor)}
    grains: dict[fx.Node, float] = {}
    for node in gm.graph.nodes:
        grain = _grain(gm, node, shapes, grains)
        if grain is not None:
            grains[node] = grain
    layers: dict[str, set[float | None]] = {}
    for node in gm.graph.nodes:
        if is_module(gm, node, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            grain = grains.get(node.all_input_nodes[0])
            layers.setdefault(str(node.target), set()).add(grain)
    if folded := [str(n.target) for n in gm.graph.nodes if _stays_folded(gm, n, grains)]:
        raise ValueError(
            f"NeuroBench would not see the single spikes that {', '.join(dict.fromkeys(folded))} read; "
            "synops(snn, loader, T) counts them. Convert with coding='direct' and inactivated_spikes="
            "'signed' or 'allow' a network of ReLUs without transposed convolutions, interpolation or "
            "pooling windows of several sizes, and with channel_wise=False where counts of several "
            "weights meet"
        )
    for name, found in layers.items():
        if len(found) == 1 and (grain := found.pop()) is not None:
            gm.set_submodule(name, UnfoldedLayer(gm.get_submodule(name), grain))
    for node in list(gm.graph.nodes):
        if is_module(gm, node, BurstIFNode) and grains.get(node) is not None:
            _show(gm, node)
    gm.recompile()
    return unit


def _stays_folded(gm: fx.GraphModule, node: fx.Node, grains: dict[fx.Node, float]) -> bool:
    """Whether a weighted layer reads what is made of spikes, and no grain of it is known."""
    if not is_module(gm, node, WEIGHTED):
        return False
    sources, seen = list(node.all_input_nodes), set()
    known = sources[0] in grains and not is_module(gm, node, TRANSPOSED_CONVOLUTIONS)
    while sources and not known:
        source = sources.pop()
        if is_module(gm, source, SOURCES):
            return True
        if source not in seen and not is_module(gm, source, WEIGHTED):
            seen.add(source)
            sources += source.all_input_nodes
    return False


def _show(gm: fx.GraphModule, node: fx.Node) -> None:
    """Let hooks see the spikes of a neuron."""
    neuron: Any = gm.get_submodule(str(node.target))
    name = unused_name(gm, "spikes")
    gm.add_submodule(name, ShownSpikes(int(neuron.max_spikes)))
    with gm.graph.inserting_after(node):
        shown = gm.graph.call_module(name, (node,))
    node.replace_all_uses_with(shown, delete_user_cb=lambda user: user is not shown)


def _grain(gm: fx.GraphModule, node: fx.Node, shapes: Any, grains: dict[fx.Node, float]) -> float | None:
    """What a count weighs in a value of a network with unit thresholds; ``None`` if it has none."""
    if is_module(gm, node, BurstIFNode):
        return 1.0 if sends_counts(gm.get_submodule(str(node.target))) else None
    sources = [n for n in node.all_input_nodes if n in shapes]
    known = {grains.get(n) for n in sources}
    units = {n: torch.tensor(grain) for n, grain in grains.items()}
    if len(known) != 1 or None in known or passed_on(gm, node, shapes, units) is None:
        return None
    grain = known.pop()
    assert grain is not None
    if is_module(gm, node, AVERAGE_POOLS):
        window = _window(gm.get_submodule(str(node.target)), shapes[sources[0]], shapes[node])
        return None if window is None else grain / window
    if is_module(gm, node, nn.Upsample):
        return grain if gm.get_submodule(str(node.target)).mode == "nearest" else None
    return grain


def _window(pool: Any, before: torch.Size, after: torch.Size) -> int | None:
    """How many numbers every window holds; ``None`` if they differ."""
    if not hasattr(pool, "output_size"):
        return plain_window(pool)
    size = 1
    for n, outputs in zip(before[2:], after[2:], strict=True):
        if n % outputs:
            return None
        size *= n // outputs
    return size


def _neurobench() -> Any:
    try:
        return importlib.import_module("neurobench.models")
    except ImportError as error:
        raise ImportError(
            f"to_neurobench needs neurobench ({error}); pip install 'sj_burst[neurobench]'"
        ) from error
