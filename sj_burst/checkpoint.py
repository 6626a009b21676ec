"""Save and load converted networks."""

import copy
import os
import secrets
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from .graph import SpikingNetwork, fuse
from .graph.hold import hold_constants
from .graph.standardize import rewrite_all
from .graph.trace import activation_names, describe, trace
from .recipe import Options, encode_input, new_neuron, place

__all__ = ["load", "save"]

FORMAT = 2


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
        "options": snn.options,
        "input_shape": list(snn.input_shape),
        "input_dtype": snn.input_dtype,
        "unseen": snn.unseen,
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


def write_atomically(content: Any, path: str | os.PathLike[str]) -> None:
    """``torch.save`` to a file beside ``path`` that then takes its place.

    Raises:
        FileNotFoundError: if there is no such folder.
        IsADirectoryError: if ``path`` is one.
        ValueError: if ``path`` is a device or the like.
    """
    path = Path(os.path.realpath(path))  # a link goes on pointing to the file
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no ordinary file; give the name of one")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    checksums = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(True)  # read_whole compares them
        with open(temporary, "xb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        torch.serialization.set_crc32_options(checksums)


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
        >>> from spikingjelly.activation_based import ann2snn
        >>> from sj_burst import BurstRecipe
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> snn = ann2snn.Converter(BurstRecipe([torch.rand(8, 3)], progress=False)).convert(ann)
        >>> x = torch.rand(5, 3)
        >>> with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        ...     save(snn, f"{folder}/snn.pt")
        ...     again = load(f"{folder}/snn.pt", ann)
        ...     torch.equal(snn.hold(x, 4), again.hold(x, 4))
        True
    """
    if not isinstance(ann, nn.Module) or isinstance(ann, SpikingNetwork):
        raise TypeError(
            f"load wants the network that was converted, got {type(ann).__name__}; pass an ANN of that "
            "architecture"
        )
    content = _read(path)
    state: dict[str, Tensor] = content["state_dict"]
    try:
        options = Options(**content["options"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or of another version: {error}") from error
    shape, input_dtype = tuple(content["input_shape"]), content["input_dtype"]
    dtype = next((t.dtype for t in state.values() if t.is_floating_point()), torch.float32)
    example = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    example = example.to(dtype if input_dtype.is_floating_point else input_dtype)
    # A copy: the architecture is wanted, in the precision of the file.
    gm = rewrite_all(copy.deepcopy(ann).to("cpu", dtype), example)
    gm = trace(fuse(gm, example))  # once more, as the converter does
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
            buffers["threshold"],  # type: ignore[arg-type]
            content["max_spikes"][name],
            buffers["v_init"],  # type: ignore[arg-type]
            buffers["shift"],
        )
    place(gm, neurons, options.max_pool)
    encode_input(gm, options, state.get("graph.encoder.threshold"))
    try:
        hold_constants(gm, example)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path} does not fit ann: {reason}; pass a network of the architecture that was converted"
        ) from error
    snn = SpikingNetwork(gm, content["options"], shape, content["unseen"], input_dtype)
    if different := sorted(set(_architecture(snn)) ^ set(content["architecture"])):
        raise ValueError(
            f"{path} does not fit ann: they differ in {different[:4]}; pass a network of the "
            "architecture that was converted"
        )
    _fill(snn, state, path)
    for module in snn.temporal_modules():
        module.reset()
    return snn.eval()


def read_whole(path: str | os.PathLike[str]) -> Any:
    """``torch.load`` of plain data, whose checksums are compared first.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, or a bit of it has changed.
    """
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()  # torch.load does not look
        if damaged is None:
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a checkpoint, or is damaged: {error}") from error
    raise ValueError(f"{path} is damaged, in its part {damaged!r}; save the network again")


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    content = read_whole(path)
    if not isinstance(content, dict) or "format" not in content:
        raise ValueError(f"{path} was not written by sj_burst.save")
    if content["format"] != FORMAT:
        raise ValueError(
            f"{path} has format {content['format']} (sj_burst {content.get('sj_burst')}), this "
            f"version reads {FORMAT}; convert the network again, or install that version"
        )
    wanted = {"options", "input_shape", "input_dtype", "unseen", "max_spikes", "architecture"}
    if missing := sorted((wanted | {"state_dict"}) - content.keys()):
        raise ValueError(f"{path} is damaged: it lacks {missing}; save the network again")
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
