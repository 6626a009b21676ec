"""Run a network as it is in use: where it is, in eval mode, with hooks that go again."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from .inputs import call
from .outputs import map_tensors

__all__ = ["device_of", "eval_mode", "evaluate", "forward_hooks"]


def device_of(net: nn.Module) -> torch.device:
    """Where a network is: the device of its first parameter or buffer, else the CPU.

    Example:
        >>> device_of(nn.Linear(2, 2))
        device(type='cpu')
    """
    tensor = next(net.parameters(), next(net.buffers(), torch.empty(0)))
    return tensor.device


@contextmanager
def eval_mode(net: nn.Module) -> Iterator[None]:
    """While open, the network is in eval mode; the training flag of every module is put back.

    Example:
        >>> net = nn.Sequential(nn.Dropout())
        >>> with eval_mode(net):
        ...     net[0].training
        False
        >>> net[0].training
        True
    """
    modes = {module: module.training for module in net.modules()}
    try:
        net.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def evaluate(model: nn.Module, x: Any) -> Any:
    """Output of ``model`` in eval mode for one input or several; its training flags are put back."""
    with eval_mode(model):
        return call(model, map_tensors(torch.clone, x))  # the forward may write into its input


@contextmanager
def forward_hooks(
    modules: Mapping[str, nn.Module], hook: Callable[[str, Any, Any, Any], None]
) -> Iterator[None]:
    """While open, ``hook(name, module, input, output)`` is called after each module has run.

    Example:
        >>> seen = []
        >>> net = nn.Sequential(nn.ReLU())
        >>> with forward_hooks({"0": net[0]}, lambda name, module, x, y: seen.append((name, y.item()))):
        ...     _ = net(torch.tensor(-1.0))
        >>> seen
        [('0', 0.0)]
    """

    def call(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        hook(name, module, inputs[0] if inputs else None, output)  # keyword arguments are left out

    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(partial(call, name)))
        yield
    finally:
        for handle in handles:
            handle.remove()
