"""Layer by layer, what the spiking network transmits and what the ANN has in its place."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, fx, nn

from ..graph.quantised import quantised
from ..graph.standardize import rewrite
from ..graph.trace import activation_names, copy_with_plain_weights, is_module, unsupported_message
from ..modules.neuron import neurons
from ..modules.pooling import MAX_POOLS
from ..modules.temporal import time_sum
from ..network import SpikingNetwork, check_converted
from ..simulation.plan import steps_at_once
from ..utils.checks import check_count, check_network
from ..utils.inference import eval_mode, forward_hooks
from ..utils.inputs import Inputs, call, join
from ..utils.loader import batches, check_loader, first_samples
from ..utils.outputs import RunningMean, at_least_single, map_tensors, side_by_side

__all__ = ["LayerMeans", "layer_means", "layer_rates"]


@dataclass
class LayerMeans:
    """One neuron or max-pooling layer for one batch; all tensors ``[N, ...]``.

    Attributes:
        current: the SNN's input to the layer, averaged over T.
        rate: its output φ(T), averaged over T.
        activation: the ANN's output in the same place.
        quantised: that of the quantised ANN, which has the SNN's levels and no time.
        module: the ANN's module in the same place.
    """

    current: Tensor
    rate: Tensor
    activation: Tensor
    quantised: Tensor
    module: nn.Module


@torch.no_grad()
def layer_means(
    snn: SpikingNetwork,
    ann: nn.Module,
    loader: Iterable[Any],
    time_steps: int,
    time_dim: int | None = None,
) -> Generator[tuple[dict[str, LayerMeans], tuple[Tensor, Tensor, Tensor]]]:
    """For each batch, what enters and leaves every neuron and max-pooling layer.

    Steps run in chunks, so memory does not grow with T. Who may stop early closes the generator, which
    takes its hooks away (``contextlib.closing``).

    Args:
        snn: a converted network; its state is reset before and after.
        ann: the network it was converted from; stays as it was.
        loader: batches.
        time_steps: T.
        time_dim: for inputs that change from step to step, as for :func:`sj_burst.simulate`; the ANN
            gets the mean frame.

    Yields:
        Layer name to :class:`LayerMeans`, in order of execution, and the answers of SNN (of its mean
        output over T), ANN and quantised ANN.

    Raises:
        ValueError: if T < 1, the loader is empty, ``ann`` is not the network that ``snn`` was
            converted from, or a value is NaN or infinite.
        TypeError: for a network that was not converted, or a loader that cannot be read.

    Example:
        >>> from sj_burst import convert
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> data = [torch.rand(16, 3)]
        >>> snn = convert(ann, data, progress=False)
        >>> layers, (out, wanted, _) = next(layer_means(snn, ann, data, time_steps=8))
        >>> layers["1"].current.shape, out.shape
        (torch.Size([16, 4]), torch.Size([16, 2]))
    """
    check_converted(snn, "the comparison with the ANN")
    check_network(ann=ann)
    check_count(time_steps=time_steps)
    check_loader(loader)
    graph = _standardized(ann, first_samples(loader, 2, "loader", time_dim)[0].to(snn.device))
    names = _layer_names(snn, graph)
    levels = quantised(snn.graph, time_steps)
    activations: dict[str, Tensor] = {}
    of_levels: dict[str, Tensor] = {}
    sums: dict[str, tuple[Any, Any, int]] = {}  # input and output over the steps seen, and their number

    def keep(name: str, _: nn.Module, __: Tensor, out: Tensor) -> None:
        activations[name] = out

    def keep_levels(name: str, _: nn.Module, __: Tensor, out: Tensor) -> None:
        of_levels[name] = out

    def add(name: str, _: nn.Module, x: Tensor, out: Tensor) -> None:
        fold = snn.temporal_modules()[0].time_fold
        assert fold is not None
        current, rate, steps = sums.get(name, (0, 0, 0))
        current = current + time_sum(at_least_single(x), fold)
        rate = rate + time_sum(at_least_single(out), fold)
        sums[name] = current, rate, steps + fold.steps  # what is constant in time is seen less often

    modules = {name: graph.get_submodule(name) for name in names}
    try:
        with (
            eval_mode(snn),
            forward_hooks(modules, keep),
            forward_hooks({name: levels.get_submodule(name) for name in names}, keep_levels),
            forward_hooks({name: snn.graph.get_submodule(name) for name in names}, add),
        ):
            for x, _ in batches(loader, "loader", time_dim, time_steps):
                x = x.to(snn.device)
                wanted = side_by_side(call(graph, x.picture()))
                with_levels = side_by_side(snn.readout(call(levels, x.picture())))
                sums.clear()
                with snn.present(x) as shown:
                    mean = RunningMean()
                    for out_seq in shown.chunks(time_steps, steps_at_once(len(x))):
                        mean.add(out_seq)
                layers = {}
                for name in names:
                    current, rate, steps = sums[name]
                    layers[name] = LayerMeans(
                        current / steps, rate / steps, activations[name], of_levels[name], modules[name]
                    )
                out = side_by_side(map_tensors(at_least_single, snn.readout(mean.value())))
                _check_shapes(layers, (out, wanted))
                _check_finite(layers, (out, wanted))
                yield layers, (out, wanted, with_levels)
    finally:
        reset_net(snn)


def layer_rates(
    snn: SpikingNetwork,
    ann: nn.Module,
    loader: Iterable[Any],
    time_steps: int,
    time_dim: int | None = None,
) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """For each batch, every neuron layer's mean output over T and the ANN's activation.

    Args:
        snn: a converted network; its state is reset before and after.
        ann: the network it was converted from.
        loader: batches.
        time_steps: T.
        time_dim: for inputs that change from step to step, as for :func:`sj_burst.simulate`.

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
    with closing(layer_means(snn, ann, loader, time_steps, time_dim)) as found:
        for layers, _ in found:
            yield {name: (layers[name].rate, layers[name].activation) for name in snn.neurons()}


def _standardized(ann: nn.Module, example: Inputs) -> fx.GraphModule:
    """The ANN with a module for every activation and pooling; what it computes is not changed."""
    try:
        two = join([example.picture()] * 2) if len(example) == 1 else example[:2].picture()
        graph, problems = rewrite(copy_with_plain_weights(ann).to(example.device), two)
        if problems:
            raise ValueError(unsupported_message(list(problems.values())))
    except ValueError as error:
        raise ValueError(f"{error}; pass the network that snn was converted from") from error
    return graph


def _layer_names(snn: SpikingNetwork, graph: fx.GraphModule) -> list[str]:
    """Neurons and what stands for max-pooling, in order of execution."""
    after = {name for name, _ in getattr(snn.readout, "graph", nn.Identity()).named_modules()}
    missing = sorted((set(activation_names(graph)) - after) ^ set(neurons(snn.graph)))
    pools = [str(n.target) for n in graph.graph.nodes if is_module(graph, n, MAX_POOLS)]
    pools = [name for name in pools if name not in after]
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
