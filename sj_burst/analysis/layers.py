"""Layer by layer, what the spiking network transmits and what the ANN has in its place."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, fx, nn

from ..conversion.prepare import prepare
from ..graph.trace import activation_names, is_module
from ..modules.neuron import neurons
from ..modules.pooling import MAX_POOLS
from ..modules.temporal import time_sum
from ..network import SpikingNetwork
from ..utils.checks import check_count, check_network
from ..utils.loader import batches, check_loader, first_samples

__all__ = ["LayerMeans", "layer_means", "layer_rates"]

_ROWS = 256  # folded rows (steps × samples) that run at once


@dataclass
class LayerMeans:
    """One neuron or max-pooling layer for one batch; all tensors ``[N, ...]``.

    Attributes:
        current: the SNN's input to the layer, averaged over T.
        rate: its output φ(T), averaged over T.
        magnitude: the absolute value of its output, averaged over T (negative spikes count).
        activation: the ANN's output in the same place.
        module: the ANN's module in the same place.
    """

    current: Tensor
    rate: Tensor
    magnitude: Tensor
    activation: Tensor
    module: nn.Module


@torch.no_grad()
def layer_means(
    snn: SpikingNetwork, ann: nn.Module, loader: Iterable[Any], time_steps: int
) -> Iterator[tuple[dict[str, LayerMeans], tuple[Tensor, Tensor]]]:
    """For each batch, what enters and leaves every neuron and max-pooling layer.

    Steps run in chunks, so memory does not grow with T.

    Args:
        snn: a converted network; its state is reset before and after.
        ann: the network it was converted from; stays as it was.
        loader: batches.
        time_steps: T.

    Yields:
        Layer name to :class:`LayerMeans`, in order of execution, and the outputs of SNN (mean over
        T) and ANN.

    Raises:
        ValueError: if T < 1, the loader is empty, ``ann`` is not the network that ``snn`` was
            converted from, or a value is NaN or infinite.
        TypeError: for a network that was not converted, or a loader that cannot be read.

    Example:
        >>> from sj_burst import convert
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> data = [torch.rand(16, 3)]
        >>> snn = convert(ann, data, progress=False)
        >>> layers, (out, wanted) = next(layer_means(snn, ann, data, time_steps=8))
        >>> layers["1"].current.shape, out.shape
        (torch.Size([16, 4]), torch.Size([16, 2]))
    """
    if not isinstance(snn, SpikingNetwork):
        raise TypeError(f"a network converted by BurstRecipe is wanted, got {type(snn).__name__}")
    check_network(ann=ann)
    check_count(time_steps=time_steps)
    check_loader(loader)
    device = next(snn.buffers(), torch.empty(0)).device
    direct = snn.options.coding == "direct"
    graph = _standardized(ann, first_samples(loader, 2)[0].to(device), direct)
    names = _layer_names(snn, graph)
    modules = {name: graph.get_submodule(name) for name in names}
    totals: dict[str, list[Tensor]] = {}
    activations: dict[str, Tensor] = {}
    handles = []
    for name in names:

        def keep(_: nn.Module, __: Any, out: Tensor, name: str = name) -> None:
            activations[name] = out

        def add(_: nn.Module, inputs: Any, out: Tensor, name: str = name) -> None:
            fold: Any = snn.temporal_modules()[0].time_fold
            terms = [time_sum(v, fold) for v in (inputs[0], out, out.abs())]
            sums = totals.setdefault(name, [torch.zeros_like(term) for term in terms])
            for total, term in zip(sums, terms, strict=True):
                total += term

        handles.append(modules[name].register_forward_hook(keep))
        handles.append(snn.graph.get_submodule(name).register_forward_hook(add))
    try:
        for x, _ in batches(loader):
            reset_net(snn)
            totals.clear()
            x, batch = x.to(device), len(x)
            wanted, out = graph(x), torch.zeros(())
            for out_seq in snn.present(x).chunks(time_steps, max(1, _ROWS // batch)):
                out = out.to(x.device) + out_seq.sum(0)
            means = {name: [total / time_steps for total in totals[name]] for name in names}
            layers = {
                name: LayerMeans(current, rate, magnitude, activations[name], modules[name])
                for name, (current, rate, magnitude) in means.items()
            }
            _check_shapes(layers, (out, wanted))
            _check_finite(layers, (out, wanted))
            yield layers, (out / time_steps, wanted)
    finally:
        for handle in handles:
            handle.remove()
        reset_net(snn)


def layer_rates(
    snn: SpikingNetwork, ann: nn.Module, loader: Iterable[Any], time_steps: int
) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """For each batch, every neuron layer's mean output over T and the ANN's activation.

    Args:
        snn: a converted network; its state is reset before and after.
        ann: the network it was converted from.
        loader: batches.
        time_steps: T.

    Yields:
        Layer name to (φ(T), a), both ``[N, ...]``.

    Raises:
        ValueError: if ``ann`` is not the network that ``snn`` was converted from.

    Example:
        >>> from sj_burst import convert
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> data = [torch.rand(16, 3)]
        >>> snn = convert(ann, data, progress=False)
        >>> rate, activation = next(layer_rates(snn, ann, data, time_steps=8))["1"]
        >>> rate.shape == activation.shape
        True
    """
    names = list(neurons(snn.graph))
    for layers, _ in layer_means(snn, ann, loader, time_steps):
        yield {name: (layers[name].rate, layers[name].activation) for name in names}


def _standardized(ann: nn.Module, example: Tensor, direct: bool) -> fx.GraphModule:
    """The ANN as the conversion saw it, with the bounded activations that it has itself."""
    try:
        graph, bounded = prepare(ann, torch.cat([example, example])[:2], compare=False, direct=direct)
    except ValueError as error:
        raise ValueError(f"{error}; pass the network that snn was converted from") from error
    for name, module in bounded.items():
        graph.set_submodule(name, module)
    return graph


def _layer_names(snn: SpikingNetwork, graph: fx.GraphModule) -> list[str]:
    """Neurons and what stands for max-pooling, in order of execution."""
    missing = sorted(set(activation_names(graph)) ^ set(neurons(snn.graph)))
    pools = [str(n.target) for n in graph.graph.nodes if is_module(graph, n, MAX_POOLS)]
    known = dict(snn.graph.named_modules())
    missing += [name for name in pools if name not in known]
    if missing:
        raise ValueError(
            f"ann and snn differ in {missing}: one of them has no activation or max-pooling of that "
            "name; pass the network that snn was converted from"
        )
    wanted = {*neurons(snn.graph), *pools}
    return [str(n.target) for n in snn.graph.graph.nodes if str(n.target) in wanted]


def _check_shapes(layers: dict[str, LayerMeans], outputs: tuple[Tensor, Tensor]) -> None:
    pairs = {name: (means.rate, means.activation) for name, means in layers.items()}
    for name, (snn, ann) in (pairs | {"output": outputs}).items():
        if snn.shape != ann.shape:
            raise ValueError(
                f"layer {name!r} returns {list(snn.shape)} in snn and {list(ann.shape)} in ann; pass "
                "the network that snn was converted from"
            )


def _check_finite(layers: dict[str, LayerMeans], outputs: tuple[Tensor, Tensor]) -> None:
    ann = {name: means.activation for name, means in layers.items()} | {"output": outputs[1]}
    snn = {name: means.rate for name, means in layers.items()} | {"output": outputs[0]}
    for owner, values in (("ann", ann), ("snn", snn)):
        bad = [name for name, value in values.items() if not value.isfinite().all()]
        if bad:
            raise ValueError(
                f"{owner} has NaN or infinite values from layer {bad[0]!r} on; check the images of "
                "the loader and the network's weights"
            )
