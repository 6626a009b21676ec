"""What a file of a converted network holds, and whether it is sound."""

import dataclasses
import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, fx

from ..graph.readout import ReadOut
from ..graph.trace import describe
from ..modules.neuron import check_max_spikes
from ..network import SpikingNetwork
from ..options import Options
from ..utils.files import read_whole

__all__ = ["architecture", "network_contents", "read_contents"]

FORMAT = 5


def network_contents(snn: SpikingNetwork) -> dict[str, Any]:
    """All that makes a converted network, as plain data: what :func:`sj_burst.save` writes."""
    return {
        "format": FORMAT,
        "sj_burst": _version("sj_burst"),
        "spikingjelly": _version("spikingjelly"),
        "options": dataclasses.asdict(snn.options),
        "inputs": {name: [list(kind.shape), kind.dtype] for name, kind in snn.inputs.items()},
        "dead": snn.dead,
        "max_spikes": {name: node.max_spikes for name, node in snn.neurons().items()},
        "architecture": architecture(snn),
        "state_dict": dict(snn.state_dict()),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # imported from a source tree
        return "unknown"


def architecture(snn: SpikingNetwork) -> list[str]:
    """What state dicts do not tell: the order of operations, and strides, kernel sizes and the like."""
    graphs = [snn.graph, *([snn.readout.graph] if isinstance(snn.readout, ReadOut) else [])]
    return [line for graph in graphs for line in _lines(graph)]


def _lines(graph: fx.GraphModule) -> list[str]:
    index = {node: f"#{i}" for i, node in enumerate(graph.graph.nodes)}  # names depend on the tracing
    calls = []
    for node, number in index.items():
        inputs = fx.node.map_arg((node.args, node.kwargs), index.__getitem__)
        calls.append(f"{number} {describe(graph, node)} {inputs}")
    settings = [
        f"{name}.{key} = {getattr(module, key)}"
        for name, module in graph.named_modules()
        for key in getattr(module, "__constants__", ())
        if key != "inplace" and hasattr(module, key)
    ]
    return calls + settings


def read_contents(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What :func:`network_contents` returned, with ``options`` as :class:`Options`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: names the file, and what is wrong with it.
    """
    content = read_whole(path)
    if "format" not in content:
        raise ValueError(f"{path} was not written by sj_burst.save; give a file that it wrote")
    if content["format"] != FORMAT:
        raise ValueError(
            f"{path} has format {content['format']} (sj_burst {content.get('sj_burst')}), this "
            f"version reads {FORMAT}; convert the network again, or install that version"
        )
    if missing := sorted(_SOUND.keys() - content.keys()):
        raise ValueError(f"{path} is damaged: it lacks {missing}; save the network again")
    for key, (kind, sound) in _SOUND.items():
        if not sound(content[key]):
            got = f"{content[key]!r:.60}"
            raise ValueError(f"{path} is damaged: {key} must be {kind}, got {got}; save it again")
    try:
        content["options"] = Options(**content["options"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or of another version: {error}") from error
    return content


def _list_of(sound: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(sound, value))


def _named(sound: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, dict)
        and all(isinstance(name, str) for name in value)
        and all(map(sound, value.values()))
    )


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_kind(value: Any) -> bool:
    sound = isinstance(value, list) and len(value) == 2
    return sound and _list_of(_is_size)(value[0]) and isinstance(value[1], torch.dtype)


def _is_max_spikes(value: Any) -> bool:
    try:
        return check_max_spikes(value) == value
    except (TypeError, ValueError):
        return False


def _is_plain_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided


_SOUND: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "options": ("options by name", _named(lambda value: True)),
    "inputs": ("sizes and type by input", lambda value: _named(_is_kind)(value) and len(value) > 0),
    "dead": ("numbers of channels by layer", _named(_is_size)),
    "max_spikes": ("Γ ≥ 1 by layer", _named(_is_max_spikes)),
    "architecture": ("a list of strings", _list_of(lambda value: isinstance(value, str))),
    "state_dict": ("tensors by name", _named(_is_plain_tensor)),
}
