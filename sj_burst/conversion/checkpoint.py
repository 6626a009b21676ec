"""Save and load converted networks."""

import os
from typing import Any

import torch
from torch import Tensor, nn

from ..functional import per_channel
from ..graph.check import why_held
from ..graph.trace import activation_names, copy_with_plain_weights
from ..modules.neuron import BurstIFNode, check_expected
from ..modules.pooling import LIPool
from ..network import InputKind, SpikingNetwork, check_converted
from ..utils.files import write_atomically
from ..utils.inference import forward_hooks
from ..utils.inputs import bind
from .assemble import assemble, encoder_names, new_neuron
from .contents import architecture, network_contents, read_contents
from .prepare import prepare

__all__ = ["load", "save"]


def save(snn: SpikingNetwork, path: str | os.PathLike[str]) -> None:
    """Write a converted network: options, versions, parameters and buffers, and a digest of them all.

    The file is written beside its place and then moved there, so an interruption leaves an old file
    whole; its permissions stay. The architecture is not stored: :func:`load` takes it from the ANN.

    Args:
        snn: a network that ``BurstRecipe`` converted.
        path: the file.

    Raises:
        TypeError: for any other network.
        FileNotFoundError: if there is no such folder.
        IsADirectoryError: if ``path`` is a folder.
        ValueError: if ``path`` is a device or the like.
        OSError: if the file cannot be written, on a full disk say.

    Example:
        >>> save(nn.Linear(2, 2), "snn.pt")
        Traceback (most recent call last):
        TypeError: save wants a network converted by BurstRecipe, got Linear; ...
    """
    check_converted(snn, "save", "use torch.save(net.state_dict(), path) for others", folded=True)
    if snn.folded:
        raise ValueError(
            "the network's weights hold its thresholds, and load builds networks from their ANN; save "
            "the network that it was made of, or its state_dict() by torch.save"
        )
    write_atomically(network_contents(snn), path)


def load(path: str | os.PathLike[str], ann: nn.Module) -> SpikingNetwork:
    """Read a converted network; it computes what the saved one did, to the last bit.

    Args:
        path: a file that :func:`save` wrote; read with ``weights_only=True``.
        ann: a network of the architecture that was converted; its weights do not matter, nor does
            their precision unless it is mixed, and it stays as it is.

    Returns:
        The spiking network in eval mode, on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError: if ``ann`` is no network, or a converted one.
        ValueError: if the file is no checkpoint of ours, or is damaged, or of another format, or
            if ``ann`` is of another architecture, has no values or computes its weights in hooks.

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
    content = read_contents(path)
    example = _example(content)
    stand_in = _stand_in(ann, _precision(content))
    try:
        return _build(stand_in, content, example)
    except (IndexError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0] if isinstance(error, RuntimeError) else str(error)
        raise ValueError(
            f"{path} does not fit ann; pass a network of the architecture that was converted: {reason}"
        ) from error


def _example(content: dict[str, Any]) -> Any:
    """Two samples of the shapes and precision that the file names; several inputs by their names."""
    precision = _precision(content)
    generator = torch.Generator().manual_seed(0)
    example = {}
    for name, (shape, dtype) in content["inputs"].items():
        dtype = precision or dtype if dtype.is_floating_point else dtype
        example[name] = torch.rand(2, *shape, generator=generator).to(dtype)
    return example if len(example) > 1 else next(iter(example.values()))


def _precision(content: dict[str, Any]) -> torch.dtype | None:
    """That of the network; ``None`` if it is mixed, and then as it was converted."""
    found = {t.dtype for t in content["state_dict"].values() if t.is_floating_point()}
    return found.pop() if len(found) == 1 else None


def _stand_in(ann: nn.Module, precision: torch.dtype | None) -> nn.Module:
    """A copy of the network on the CPU in the precision of the file: its architecture is wanted."""
    if any(t.is_meta for t in (*ann.parameters(), *ann.buffers())):
        raise ValueError(
            "ann is on the meta device, which holds no values; pass ann.to_empty(device='cpu'), whose "
            "values do not matter"
        )
    return copy_with_plain_weights(ann).to("cpu", precision)


def _build(ann: nn.Module, content: dict[str, Any], example: Any) -> SpikingNetwork:
    """The saved network, by the steps of a conversion.

    Raises:
        ValueError: where file and network do not fit.
    """
    options, state = content["options"], content["state_dict"]
    direct, potential = options.coding == "direct", options.output == "potential"
    gm, readout, _ = prepare(ann, example, compare=False, direct=direct, potential=potential)
    names, saved = sorted(activation_names(gm)), sorted(content["max_spikes"])
    if names != saved:
        raise ValueError(f"the file holds neurons {saved}, and ann has activations {names}")
    neurons = {name: _neuron(name, content) for name in activation_names(gm)}
    largest = {
        name: state[key]
        for name in encoder_names(gm).values()
        if (key := f"graph.{name}.threshold") in state
    }
    assemble(gm, neurons, options, largest, example)
    names, kinds = [str(node.target) for node in bind(gm, example)], content["inputs"]
    if len(names) == 1:  # whatever it is called
        kinds = dict(zip(names, kinds.values(), strict=True))
    inputs = {name: InputKind(tuple(kinds[name][0]), kinds[name][1]) for name in names}
    held_only = why_held(gm, example)
    snn = SpikingNetwork(gm, options, inputs, content["dead"], readout, held_only)
    if different := sorted(set(architecture(snn)) ^ set(content["architecture"])):
        raise ValueError(f"they differ in {different[:4]}")
    _fill(snn, state)
    _check_neurons(snn.eval(), example)
    return snn


def _neuron(name: str, content: dict[str, Any]) -> BurstIFNode:
    buffers = {}
    for key in ("threshold", "v_init", "shift", "negative_slope"):
        value = buffers[key] = content["state_dict"].get(f"graph.{name}.{key}")
        if value is None and key in ("threshold", "v_init"):
            raise ValueError(f"neuron {name!r} has no {key}")
        if value is not None and not (value.is_floating_point() and value.isfinite().all()):
            raise ValueError(f"neuron {name!r} has a {key} that is no finite number")
    threshold = buffers.pop("threshold")
    return new_neuron(content["options"], threshold, content["max_spikes"][name], **buffers)


def _fill(snn: SpikingNetwork, state: dict[str, Tensor]) -> None:
    """Load parameters; calibration may have untied weights, or added biases that the ANN lacks."""
    for layer in snn.modules():
        for name, parameter in list(layer.named_parameters(recurse=False)):
            setattr(layer, name, nn.Parameter(parameter.detach().clone()))
    for name, tensor in state.items():
        owner, _, last = name.rpartition(".")
        module = dict(snn.named_modules()).get(owner)
        if last == "expected" and isinstance(module, (BurstIFNode, LIPool)):
            check_expected(tensor, getattr(module, "negative_slope", None))
            module.expected = tensor.clone()
        if last == "bias" and getattr(module, "bias", tensor) is None:
            module.bias = nn.Parameter(tensor.clone())  # type: ignore[union-attr]
    own = {name: (tuple(t.shape), t.dtype) for name, t in snn.state_dict().items()}
    saved = {name: (tuple(t.shape), t.dtype) for name, t in state.items()}
    if own != saved:
        raise ValueError(f"{sorted(set(own.items()) ^ set(saved.items()), key=str)[:4]}…")
    snn.load_state_dict(state)


@torch.no_grad()
def _check_neurons(snn: SpikingNetwork, example: Any) -> None:
    """Raise unless thresholds, potentials and currents fit what the neurons get."""

    def compare(name: str, node: Any, x: Tensor, y: Tensor) -> None:
        for key in ("threshold", "v_init", "shift", "expected"):
            if (value := getattr(node, key, None)) is None:
                continue
            sample = torch.Size((1, *y.shape[1:]))
            if torch.broadcast_shapes(per_channel(value, y.dim()).shape, sample) != sample:
                raise ValueError(
                    f"the {key} of {name!r} is of shape {list(value.shape)}, and its input "
                    f"of {list(x.shape)}"
                )

    modules = dict(snn.graph.named_modules())
    layers = {name: m for name, m in modules.items() if isinstance(m, (BurstIFNode, LIPool))}
    with forward_hooks(layers, compare):
        snn.run(example, 1)
