"""A converted network of integers: int8 counts times int8 weights, the same bits on every machine."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, fx, nn

from ..conversion.weights import integer_weights, round_all, unit_met, weighted_layers
from ..functional import per_channel
from ..graph.operators import AVERAGE_POOLS, SUMS, WEIGHTED
from ..graph.repeat import RepeatOverTime
from ..graph.trace import call_sites, is_module
from ..graph.units import passed_on, sends_counts
from ..modules.counting import LARGEST_INT8, CountingNode
from ..modules.integers import AffineScale, CountPool, IntegerLayer, OfBytes, plain_window
from ..modules.neuron import BurstIFNode
from ..modules.pooling import LIPool
from ..network import SpikingNetwork, check_converted
from ..options import Options
from ..utils.inference import device_of
from .editor import GraphEditor

__all__ = ["to_integers"]

_SAME = 0.02  # of a step: how far weights may be from the integers that they were rounded to


def to_integers(snn: SpikingNetwork, bits: int | Mapping[str, int] | None = None) -> SpikingNetwork:
    r"""The same network in integers: neurons send int8 counts, which meet weights of int8.

    .. math::
        n = \mathrm{clip}(\lfloor m \rfloor, \cdot, \Gamma), \quad
        m \leftarrow m + \frac{s_o}{\theta_o} \sum_c q_{oc} n_c + \frac{b_o}{\theta_o}, \quad
        m \leftarrow m - n

    with the integers q and scales s of ``weight_bits``. The sums over c are exact, whatever adds them;
    the rest is float32, element by element, in a fixed order: results do not depend on the number of
    threads, the machine or the backend. Spikes are those of ``snn``, but for its rounding: a current
    that lies on a threshold to seven digits may fall on the other side.

    What a layer reads that is no count, a picture say, is rounded to 30 bits below the largest number of
    its sample. On a CPU with VNNI the sums are made by oneDNN's int8 kernels, faster than in float32;
    elsewhere, on CUDA too, in float64, which is exact and slow. The network runs as ``snn`` does;
    ``state_dict()`` holds the integers.

    Args:
        snn: a network converted with ``weight_bits``; stays as it is, but for its reset state.
        bits: round the weights to so many bits now, of all layers or by name as in ``Options``, and look
            at the accuracy; ``None``: they must be integers already, as after a conversion with
            ``weight_bits``.

    Returns:
        A network in eval mode that returns what ``snn`` returns. :func:`sj_burst.save` refuses it: save
        ``snn``.

    Raises:
        TypeError: for a network that was not converted.
        ValueError: names the layers whose weights are no integers, or whose Γ is above 127.

    Source: integer arithmetic as on chips; the exact sums are our own addition.

    Example:
        >>> import sj_burst
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> snn = sj_burst.convert(ann, [torch.rand(16, 3)], weight_bits=8, progress=False)
        >>> integers, x = to_integers(snn), torch.rand(5, 3)
        >>> torch.allclose(integers.run(x, 4), snn.run(x, 4), atol=1e-5)
        True
        >>> integers.state_dict()["graph.2.weight"].dtype
        torch.int8
    """
    check_converted(snn, "to_integers")
    options = snn.options if bits is None else Options(weight_bits=bits)
    wanted = options.weight_bits_of(weighted_layers(snn.graph))
    if wanted is None:
        raise ValueError(
            "weights are no integers; convert with weight_bits=8, or pass bits=8 to round now"
        )
    if kinds := sorted({str(p.dtype) for p in snn.graph.parameters()} - {"torch.float32"}):
        raise ValueError(
            f"to_integers wants a network in float32, got {kinds[0]}; convert it in float32, or call "
            "snn.float() if it was converted in float32 or more"
        )
    _check_max_spikes(snn)
    reset_net(snn)
    net = copy.deepcopy(snn).eval()
    if bits is not None:
        round_all(net.graph, wanted, net.example(2).value)
    _Rewriting(net, wanted).run()
    net.folded = True
    return net


def _check_max_spikes(snn: SpikingNetwork) -> None:
    large = {n: m.max_spikes for n, m in snn.neurons().items() if m.max_spikes > LARGEST_INT8}
    if large:
        name, gamma = next(iter(large.items()))
        raise ValueError(
            f"max_spikes={gamma} of {name!r} ({len(large)} such layers): counts in int8 go up to "
            f"{LARGEST_INT8}; convert with fewer"
        )


@dataclass
class _Value:
    """A value as it is in the new graph: ``unit`` times what is there, plus ``offset``.

    Attributes:
        unit: shaped as a sample, or ``[C]``.
        offset: likewise.
        largest: of counts in int8; ``None`` for float32.
        signed: whether counts may be negative.
        counted: whether it is made of counts of neurons, or means of them; else of sums of a layer.
    """

    unit: Tensor
    offset: Tensor | None = None
    largest: int | None = None
    signed: bool = False
    counted: bool = False


class _Rewriting:
    """Walks through a graph once, and puts integer modules in the places of others."""

    def __init__(self, snn: SpikingNetwork, bits: Mapping[str, int]) -> None:
        self.editor, self.bits = GraphEditor(snn), bits
        self.gm, self.shapes = self.editor.gm, self.editor.shapes
        self.device = device_of(snn)
        # Layers of several calls were rounded without regard to what they read.
        self.shared = {n for n in self.gm.graph.nodes if call_sites(self.gm, n.target) > 1}
        self.values: dict[fx.Node, _Value] = {}
        self.wrong: list[str] = []

    @torch.no_grad()
    def run(self) -> None:
        """Rewrite, in place.

        Raises:
            ValueError: names the layers whose weights are no integers.
        """
        for node in list(self.gm.graph.nodes):
            self._rewrite(node)
        if self.wrong:
            bits = self.bits[self.wrong[0]] if len(set(self.bits.values())) == 1 else self.bits
            raise ValueError(
                f"weights of {', '.join(self.wrong)} are no integers of {bits} bits (any more: "
                f"training moves thresholds, with which they were rounded); pass bits={bits} "
                "to round them now"
            )
        self.gm.graph.eliminate_dead_code()
        self.editor.finish()

    def _rewrite(self, node: fx.Node) -> None:
        if is_module(self.gm, node, BurstIFNode) and sends_counts(self.editor.module(node)):
            self._neuron(node)
        elif is_module(self.gm, node, WEIGHTED):
            self._layer(node)
        elif is_module(self.gm, node, RepeatOverTime) and node.all_input_nodes[0] in self.values:
            self.values[node] = self.values[node.all_input_nodes[0]]
        elif (unit := passed_on(self.gm, node, self.shapes, self._units())) is not None:
            self._pass_on(node, unit)
        elif not self._joins(node):
            self._restore(node)

    def _units(self) -> dict[fx.Node, Tensor]:
        """Units of values that are counts, or means of them."""
        return {n: v.unit for n, v in self.values.items() if v.counted and v.unit.dim() <= 1}

    def _joins(self, node: fx.Node) -> bool:
        """Whether a neuron adds two values itself: the sum is read by it alone."""
        parts = node.all_input_nodes
        if node.target not in SUMS or node.kwargs or len(parts) != 2 or len(node.users) != 1:
            return False
        reader = next(iter(node.users))
        neuron = is_module(self.gm, reader, BurstIFNode) and sends_counts(self.editor.module(reader))
        return neuron and all(self.shapes.get(n) == self.shapes[node] for n in parts)

    def _neuron(self, node: fx.Node) -> None:
        neuron, source = self.editor.module(node), node.all_input_nodes[0]
        dim = len(self.shapes[node])
        theta = per_channel(neuron.threshold.detach(), dim)
        parts = source.all_input_nodes if self._joins(source) else [source]
        one = theta.new_ones(())
        terms = [self.values.get(part, _Value(one)) for part in parts]
        scales = [per_channel(term.unit, dim) / theta for term in terms]
        offsets = [per_channel(t.offset, dim) / theta for t in terms if t.offset is not None]
        if neuron.shift is not None:
            offsets.append(per_channel(neuron.shift, dim) / theta)
        counting = CountingNode(
            scales,
            neuron.max_spikes,
            per_channel(neuron.v_init, dim) / theta,
            sum(offsets[1:], offsets[0]) if offsets else None,
            neuron.signed,
            neuron.step_mode,
            neuron.expected,
        )
        counting.backend = neuron.backend
        self.gm.set_submodule(str(node.target), counting.to(self.device))
        node.args = tuple(parts)
        self.values[node] = _Value(
            neuron.threshold.detach(),
            largest=int(neuron.max_spikes),
            signed=neuron.signed,
            counted=True,
        )

    def _layer(self, node: fx.Node) -> None:
        layer, source = self.editor.module(node), node.all_input_nodes[0]
        alone = node not in self.shared
        unit = unit_met(self.gm, node, self.shapes, self._units()) if alone else None
        q, scale, rest = integer_weights(layer, self.bits[str(node.target)], unit)
        signed = unit is not None and self.values[source].signed
        if rest > _SAME:
            self.wrong.append(str(node.target))
        if unit is None:
            self._restore(node)
        dim = len(self.shapes[node])
        last = is_module(self.gm, node, nn.Linear) and dim > 2
        fill = (1,) * (dim - 2) if last else ()  # channels are the last dimension
        offset = None if layer.bias is None else layer.bias.detach().view(*fill, -1)
        self.editor.place(node, IntegerLayer(layer, q, signed))
        self.values[node] = _Value(scale.view(*fill, -1), offset)

    def _pass_on(self, node: fx.Node, unit: Tensor) -> None:
        """Operations on every channel for itself, which counts pass in the unit of their neurons."""
        self._restore(node, but=self._units())
        sources = [self.values.get(n) for n in node.all_input_nodes if n in self.shapes]
        largest = [None if v is None else v.largest for v in sources]
        signed = any(v is not None and v.signed for v in sources)
        whole = None if None in largest else max(n for n in largest if n is not None)
        if whole is None:
            self._to_float(node)
        elif is_module(self.gm, node, AVERAGE_POOLS):
            window = plain_window(self.editor.module(node))
            if window is not None and window * whole > LARGEST_INT8:
                window = None
            self.editor.place(node, CountPool(self.editor.module(node), window))
            unit, whole = (unit, None) if window is None else (unit / window, window * whole)
        elif is_module(self.gm, node, nn.Upsample) and self.editor.module(node).mode == "nearest":
            self.editor.place(node, OfBytes(self.editor.module(node)))
        elif is_module(self.gm, node, LIPool):
            pass
        elif node.op == "call_module" and not is_module(self.gm, node, nn.Flatten):
            self._to_float(node)
            whole = None
        self.values[node] = _Value(unit, None, whole, signed, counted=True)

    def _restore(self, node: fx.Node, but: Mapping[fx.Node, Any] | None = None) -> None:
        """Let an operation see what it saw in the converted network, or of some values the counts."""

        def undo(source: fx.Node) -> nn.Module | None:
            value = None if source in (but or {}) else self.values.get(source)
            return None if value is None else AffineScale(value.unit, value.offset)

        self.editor.restore(node, undo)

    def _to_float(self, node: fx.Node) -> None:
        """Let an operation read counts as float32."""
        for source in dict.fromkeys(node.all_input_nodes):
            value = self.values.get(source)
            if value is not None and value.largest is not None:
                one = torch.ones((), dtype=torch.float32, device=self.device)
                self.editor.insert(node, source, AffineScale(one))
