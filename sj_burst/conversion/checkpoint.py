"""Save and load converted networks."""

import dataclasses
import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..graph.trace import activation_names, copy_with_plain_weights, describe
from ..network import SpikingNetwork
from ..options import Options
from ..utils.files import read_whole, write_atomically
from .assemble import assemble, new_neuron
from .prepare import prepare

__all__ = ["load", "save"]

FORMAT = 3


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # imported from a source tree
        return "unknown"


def save(snn: SpikingNetwork, path: str | os.PathLike[str]) -> None:
    """Write a converted network: options, versions, parameters and buffers.

    The file is written beside its place and then moved there, so an interruption leaves an old file
    whole. The architecture is not stored: :func:`load` takes it from the ANN.

    Args:
        snn: a network that ``BurstRecipe`` converted.
        path: the file.

    Raises:
        TypeError: for any other network.
        FileNotFoundError: if there is no such folder.
        IsADirectoryError: if ``path`` is a folder.
        ValueError: if ``path`` is a device or the like.

    Example:
        >>> save(nn.Linear(2, 2), "snn.pt")
        Traceback (most recent call last):
        TypeError: save wants a network converted by BurstRecipe, got Linear; ...
    """
    if not isinstance(snn, SpikingNetwork):
        raise TypeError(
            f"save wants a network converted by BurstRecipe, got {type(snn).__name__}; "
            "use torch.save(net.state_dict(), path) for others"
        )
    content = {
        "format": FORMAT,
        "sj_burst": _version("sj_burst"),
        "spikingjelly": _version("spikingjelly"),
        "options": dataclasses.asdict(snn.options),
        "input_shape": list(snn.input_shape),
        "input_dtype": snn.input_dtype,
        "dead": snn.dead,
        "max_spikes": {name: node.max_spikes for name, node in snn.neurons().items()},
        "architecture": _architecture(snn),
        "state_dict": snn.state_dict(),
    }
    write_atomically(content, path)


def _architecture(snn: SpikingNetwork) -> list[str]:
    """What state dicts do not tell: the order of operations, and strides, kernel sizes and the like."""
    graph = snn.graph
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


def load(path: str | os.PathLike[str], ann: nn.Module) -> SpikingNetwork:
    """Read a converted network; it computes what the saved one did, to the last bit.

    Args:
        path: a file that :func:`save` wrote; read with ``weights_only=True``.
        ann: a network of the architecture that was converted; its weights do not matter, and it
            stays as it is.

    Returns:
        The spiking network in eval mode, on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError: if ``ann`` is no network, or a converted one.
        ValueError: if the file is no checkpoint of ours, or is damaged, or of another format, or
            if ``ann`` is of another architecture.

    Example:
        >>> import tempfile
        >>> from sj_burst import convert
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> snn = convert(ann, [torch.rand(8, 3)], progress=False)
        >>> x = torch.rand(5, 3)
        >>> with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        ...     save(snn, f"{folder}/snn.pt")
        ...     again = load(f"{folder}/snn.pt", ann)
        ...     torch.equal(snn.run(x, 4), again.run(x, 4))
        True
    """
    if not isinstance(ann, nn.Module) or isinstance(ann, SpikingNetwork):
        raise TypeError(
            f"load wants the network that was converted, got {type(ann).__name__}; pass an ANN of that "
            "architecture"
        )
    content = _read(path)
    options, state, example = content["options"], content["state_dict"], _example(content)
    gm, _ = prepare(_stand_in(ann, example), example, compare=False, direct=options.coding == "direct")
    names = activation_names(gm)
    if sorted(names) != sorted(content["max_spikes"]):
        raise ValueError(
            f"{path} holds neurons {sorted(content['max_spikes'])}, but ann has activations "
            f"{sorted(names)}; pass a network of the architecture that was converted"
        )
    neurons = {}
    for name in names:
        buffers = {k: state.get(f"graph.{name}.{k}") for k in ("threshold", "v_init", "shift")}
        neurons[name] = new_neuron(
            options,
            buffers["threshold"],
            content["max_spikes"][name],
            buffers["v_init"],
            buffers["shift"],
        )
    try:
        assemble(gm, neurons, options, state.get("graph.encoder.threshold"), example)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path} does not fit ann: {reason}; pass a network of the architecture that was converted"
        ) from error
    shape = tuple(content["input_shape"])
    snn = SpikingNetwork(gm, options, shape, content["dead"], content["input_dtype"])
    if different := sorted(set(_architecture(snn)) ^ set(content["architecture"])):
        raise ValueError(
            f"{path} does not fit ann: they differ in {different[:4]}; pass a network of the "
            "architecture that was converted"
        )
    _fill(snn, state, path)
    for module in snn.temporal_modules():
        module.reset()
    return snn.eval()


def _example(content: dict[str, Any]) -> Tensor:
    """Two samples of the shape and precision that the file names."""
    state, input_dtype = content["state_dict"], content["input_dtype"]
    dtype = next((t.dtype for t in state.values() if t.is_floating_point()), torch.float32)
    example = torch.rand(2, *content["input_shape"], generator=torch.Generator().manual_seed(0))
    return example.to(dtype if input_dtype.is_floating_point else input_dtype)


def _stand_in(ann: nn.Module, example: Tensor) -> nn.Module:
    """A copy of the network on the CPU in the precision of the file: its architecture is wanted."""
    if any(t.is_meta for t in (*ann.parameters(), *ann.buffers())):
        raise ValueError(
            "ann is on the meta device, which holds no values; pass ann.to_empty(device='cpu'), whose "
            "values do not matter"
        )
    dtype = example.dtype if example.is_floating_point() else None
    return copy_with_plain_weights(ann).to("cpu", dtype)


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    content = read_whole(path)
    if not isinstance(content, dict) or "format" not in content:
        raise ValueError(f"{path} was not written by sj_burst.save")
    if content["format"] != FORMAT:
        raise ValueError(
            f"{path} has format {content['format']} (sj_burst {content.get('sj_burst')}), this "
            f"version reads {FORMAT}; convert the network again, or install that version"
        )
    wanted = {"options", "input_shape", "input_dtype", "dead", "max_spikes", "architecture"}
    if missing := sorted((wanted | {"state_dict"}) - content.keys()):
        raise ValueError(f"{path} is damaged: it lacks {missing}; save the network again")
    try:
        content["options"] = Options(**content["options"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or of another version: {error}") from error
    return content


def _fill(snn: SpikingNetwork, state: dict[str, Tensor], path: object) -> None:
    """Load parameters; calibration may have untied weights, or added biases that the ANN lacks."""
    for layer in snn.modules():
        for name, parameter in list(layer.named_parameters(recurse=False)):
            setattr(layer, name, nn.Parameter(parameter.detach().clone()))
    for name, tensor in state.items():
        owner, _, last = name.rpartition(".")
        module = dict(snn.named_modules()).get(owner)
        if last == "bias" and getattr(module, "bias", tensor) is None:
            module.bias = nn.Parameter(tensor.clone())  # type: ignore[union-attr]
    own = {name: tuple(tensor.shape) for name, tensor in snn.state_dict().items()}
    saved = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if own != saved:
        different = sorted(set(own.items()) ^ set(saved.items()))[:4]
        raise ValueError(
            f"{path} does not fit ann: {different}…; pass a network of the architecture that was "
            "converted"
        )
    snn.load_state_dict(state)
