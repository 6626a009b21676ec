"""Layer by layer, what the spiking network transmits and what the ANN has in its place."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, nn

from .graph.network import SpikingNetwork
from .graph.standardize import standardize
from .loader import batches, take
from .neuron import neurons

__all__ = ["layer_rates"]


@torch.no_grad()
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
        >>> from spikingjelly.activation_based import ann2snn
        >>> from sj_burst import BurstRecipe
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> data = [torch.rand(16, 3)]
        >>> snn = ann2snn.Converter(BurstRecipe(data, progress=False)).convert(ann)
        >>> rate, activation = next(layer_rates(snn, ann, data, time_steps=8))["1"]
        >>> rate.shape == activation.shape
        True
    """
    device = next(iter(snn.buffers())).device
    example = take(loader, 2)[0].to(device)
    graph = standardize(ann.to(device), torch.cat([example, example])[:2])
    names = list(neurons(snn.graph))
    modules = dict(graph.named_modules())
    if missing := [name for name in names if name not in modules]:
        raise ValueError(
            f"ann has no activation {missing}; pass the network that snn was converted from"
        )
    activations: dict[str, Tensor] = {}
    rates: dict[str, Tensor] = {}
    handles = []
    for name in names:

        def keep_activation(_: nn.Module, __: Any, out: Tensor, name: str = name) -> None:
            activations[name] = out

        def keep_rate(_: nn.Module, __: Any, out: Tensor, name: str = name) -> None:
            rates[name] = out.unflatten(0, (time_steps, -1)).mean(0)

        handles.append(modules[name].register_forward_hook(keep_activation))
        handles.append(snn.graph.get_submodule(name).register_forward_hook(keep_rate))
    try:
        for x, _ in batches(loader):
            reset_net(snn)
            graph(x.to(device))
            snn.hold(x.to(device), time_steps)
            yield {name: (rates[name], activations[name]) for name in names}
    finally:
        for handle in handles:
            handle.remove()
        reset_net(snn)
