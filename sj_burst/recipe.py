"""The conversion recipe, its options, and the published settings by name."""

import copy
import dataclasses
import fnmatch
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from spikingjelly.activation_based import ann2snn
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, fx, nn
from tqdm import tqdm

from . import distributed
from .backends import set_backend
from .bounded import BoundedActivation
from .calibration import FITS, sweep
from .encoding import ENCODERS
from .graph import SpikingNetwork, check_batch_independent, check_equal, check_supported, fuse
from .graph.hold import hold_constants
from .graph.standardize import rewrite
from .graph.trace import activation_names, depends_on_input, is_module, plain_copy, record
from .inactivated import SpikeCalibratedNode
from .loader import batches, check_loader, take
from .neuron import BurstIFNode, check_max_spikes
from .pooling import MAX_POOLS, POOLING_RULES, spiking_pool
from .potential import POTENTIAL_FRACTIONS, POTENTIAL_RULES
from .threshold import THRESHOLD_RULES, ActivationStatistics, fit_threshold, parse_percentile
from .transfer import Transfer

__all__ = ["PRESETS", "BurstRecipe", "Options"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Everything that a conversion may vary; see README for the table.

    Args:
        time_steps: T that thresholds and potentials are fitted for; the network runs any number.
        max_spikes: Γ, most spikes per step; an integer, ``math.inf``, or a mapping of layer name
            patterns (``fnmatch``) to such values, of which the first match counts.
        threshold: ``"max"``, a percentile such as ``"99.9%"``, ``"mse"``, ``"gaussian"``, or
            ``"trained"`` for bounded activations (``RateNorm``, ``QCFS``, ReLU6, …): θ = bound/Γ,
            and nothing is observed.
        channel_wise: a threshold for each channel, else one for the layer.
        potential: initial membrane potential: ``"zero"``, ``"half"`` (θ/2), ``"ann"`` (per channel,
            from the ANN's activations) or ``"data"`` (per channel, on the spiking prefix).
        shift: add θ/(2T) to the input current at every step (Deng & Gu, ICLR 2021), which is what
            ``potential="half"`` does at once; hence only with ``potential="zero"``.
        max_pool: ``"lateral_inhibition"``, ``"gated"``, ``"spike"`` or ``"average"``.
        coding: of the input: ``"direct"``, ``"rate"``, ``"poisson"`` or ``"compensated"``.
        inactivated_spikes: ``"signed"`` lets a neuron take spikes back at once,
            ``"spike_calibration"`` after unusual silence, ``"allow"`` never.
        allowance: steps of silence that ``"spike_calibration"`` allows beyond the mean interval.
        calibration: ``"none"``, ``"light"`` (biases) or ``"advanced"`` (weights, biases and the
            scale of thresholds).
        calibration_images: how many images of the loader ``calibration`` and ``potential="data"``
            use at most; fewer if one layer's activations in all steps would exceed 1 GiB.

    Raises:
        ValueError: names the option, the value received and what is allowed.
        TypeError: for a value of the wrong type.

    Example:
        >>> Options(threshold="median")
        Traceback (most recent call last):
        ValueError: threshold must be one of ['max', 'mse', 'gaussian', 'trained'] or a percentile ...
    """

    time_steps: int = 8
    max_spikes: float | Mapping[str, float] = 4
    threshold: str = "mse"
    channel_wise: bool = True
    potential: str = "half"
    shift: bool = False
    max_pool: str = "lateral_inhibition"
    coding: str = "direct"
    inactivated_spikes: str = "signed"
    allowance: int = 64
    calibration: str = "advanced"
    calibration_images: int = 256

    def __post_init__(self) -> None:
        for name, least in (("time_steps", 1), ("calibration_images", 1), ("allowance", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer ≥ {least}, got {value!r}")
            if value < least:
                raise ValueError(f"{name} must be an integer ≥ {least}, got {value}")
        if isinstance(self.max_spikes, Mapping):
            if not self.max_spikes:
                raise ValueError("max_spikes is an empty mapping; give a number, or {'*': 1}")
            if wrong := [name for name in self.max_spikes if not isinstance(name, str)]:
                raise TypeError(f"max_spikes maps names of layers to Γ, got {wrong[0]!r} as a name")
            object.__setattr__(
                self, "max_spikes", {k: check_max_spikes(v) for k, v in self.max_spikes.items()}
            )
        else:
            object.__setattr__(self, "max_spikes", check_max_spikes(self.max_spikes))
        if not isinstance(self.threshold, str) or (
            self.threshold not in THRESHOLD_RULES and parse_percentile(self.threshold) is None
        ):
            raise ValueError(
                f"threshold must be one of {list(THRESHOLD_RULES)} or a percentile such as "
                f"'99.9%', got {self.threshold!r}"
            )
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        for name in ("channel_wise", "shift"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if self.shift and self.potential != "zero":
            raise ValueError(
                f"shift=True with potential={self.potential!r} corrects the same half quantum twice; "
                "use shift=True with potential='zero', or shift=False"
            )
        if self.threshold in ("mse", "gaussian", "trained") and math.inf in self._all_max_spikes():
            raise ValueError(
                f"threshold={self.threshold!r} divides by max_spikes, which is infinite; give a "
                "finite max_spikes, or use threshold='max' or a percentile"
            )

    def _all_max_spikes(self) -> list[float]:
        gamma = self.max_spikes
        return list(gamma.values()) if isinstance(gamma, Mapping) else [gamma]

    def max_spikes_of(self, layers: Iterable[str]) -> dict[str, float]:
        """Γ for each layer.

        Raises:
            ValueError: if a pattern matches no layer, or a layer no pattern.
        """
        layers = list(layers)
        if not isinstance(self.max_spikes, Mapping):
            return dict.fromkeys(layers, self.max_spikes)
        found: dict[str, float] = {}
        for pattern, value in self.max_spikes.items():
            matches = [name for name in layers if fnmatch.fnmatchcase(name, pattern)]
            if not matches:
                raise ValueError(f"max_spikes: {pattern!r} matches none of the layers {layers}")
            for name in matches:
                found.setdefault(name, value)
        if missing := [name for name in layers if name not in found]:
            raise ValueError(f"max_spikes: no pattern matches {missing}; add '*': 1 as the last one")
        return found


_CHOICES: dict[str, list[str]] = {
    "potential": list(POTENTIAL_RULES),
    "max_pool": list(POOLING_RULES),
    "coding": ["direct", *ENCODERS],
    "inactivated_spikes": ["allow", "signed", "spike_calibration"],
    "calibration": ["none", "light", "advanced"],
}
# calibration option → what the sweep fits in each layer, in this order.
_CALIBRATIONS = {"none": [], "light": ["bias"], "advanced": ["weights", "bias", "threshold", "bias"]}

_SWEEP_BYTES = 2**30  # of one layer's activations; a handful of layers are held at a time

# Published settings: options that differ from the defaults, by the paper they come from.
_PLAIN: dict[str, Any] = dict(
    max_spikes=1,
    channel_wise=False,
    potential="zero",
    inactivated_spikes="allow",
    calibration="none",
)
PRESETS: dict[str, dict[str, Any]] = {
    # Diehl et al., IJCNN 2015: normalisation by the maximum activation.
    "diehl2015": _PLAIN | dict(threshold="max", max_pool="spike"),
    # Li & Zeng, IJCAI 2022: burst spikes and lateral-inhibition pooling.
    "burst": _PLAIN | dict(threshold="99.9%", max_spikes=5),
    # Li, He, Dong, Kong & Zeng, 2022: burst, and spike calibration of inactivated neurons.
    "spicalib": _PLAIN | dict(threshold="99.9%", max_spikes=5, inactivated_spikes="spike_calibration"),
    # Bu et al., AAAI 2022: optimized potential initialization.
    "opi": _PLAIN | dict(threshold="99.9%", potential="half"),
    # Li et al., 2023 (IC-SNN): initial potential from the training set, coding compensation.
    "ic_snn": _PLAIN | dict(threshold="99.9%", potential="data", coding="compensated"),
    # Deng & Gu, ICLR 2021: threshold balancing and the shift by half a quantum.
    "rts": _PLAIN | dict(threshold="max", shift=True),
    # Ding et al., IJCAI 2021 (RNL): thresholds that training has fitted, as activation bounds.
    "rnl": _PLAIN | dict(threshold="trained"),
    # Li et al., ICML 2021: thresholds of least squared error, then biases layer by layer.
    "calibration_light": _PLAIN | dict(threshold="mse", channel_wise=True, calibration="light"),
    # Li et al., ICML 2021: the same with weights; the fit is our closed form.
    "calibration_advanced": _PLAIN
    | dict(threshold="mse", channel_wise=True, potential="data", calibration="advanced"),
}


class BurstRecipe(ann2snn.FXConversionRecipe):
    """Recipe for SpikingJelly's converter: a trained ReLU network to burst neurons.

    ``ann2snn.Converter(BurstRecipe(loader, time_steps=8, max_spikes=4)).convert(ann)`` returns a
    :class:`~sj_burst.graph.network.SpikingNetwork` in eval mode; ``ann`` stays as it was.

    Args:
        calibration_loader: training batches, ``(input, target)`` or inputs; read several times.
        progress: show progress bars.
        **options: see :class:`Options`.

    Raises:
        TypeError: for an unknown option, or a loader that cannot be read.
        ValueError: for a bad value, and during conversion for a network that cannot be converted.

    Source: Li & Zeng, IJCAI 2022; the options name theirs.

    Example:
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> recipe = BurstRecipe([torch.rand(16, 3)], time_steps=4, progress=False)
        >>> snn = ann2snn.Converter(recipe).convert(ann)
        >>> snn.hold(torch.rand(5, 3), time_steps=4).shape
        torch.Size([4, 5, 2])
    """

    def __init__(
        self, calibration_loader: Iterable[Any], *, progress: bool = True, **options: Any
    ) -> None:
        known = [field.name for field in dataclasses.fields(Options)]
        if unknown := sorted(set(options) - set(known)):
            raise TypeError(f"unknown option {', '.join(unknown)}; the options are {known}")
        check_loader(calibration_loader, "calibration_loader")
        self.calibration_loader = calibration_loader
        self.progress = progress
        self.options = Options(**options)
        self._statistics: dict[str, ActivationStatistics] = {}
        self._example = torch.empty(0)
        self._ann_modules: dict[str, nn.Module] = {}
        self._trained: dict[str, nn.Module] = {}

    @classmethod
    def preset(
        cls, name: str, calibration_loader: Iterable[Any], *, progress: bool = True, **options: Any
    ) -> "BurstRecipe":
        """A published method by its name, with any option overridden.

        Args:
            name: a key of ``PRESETS``.
            calibration_loader: as for the class.
            progress: as for the class.
            **options: override what the preset sets.

        Raises:
            ValueError: for an unknown name; lists the known ones.

        Example:
            >>> BurstRecipe.preset("burst", [torch.rand(4, 3)], time_steps=16).options.threshold
            '99.9%'
        """
        if name not in PRESETS:
            raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {name!r}")
        return cls(calibration_loader, progress=progress, **PRESETS[name] | options)

    # The hooks below are called by SpikingJelly's converter, in this order.

    def before_trace(self, converter: ann2snn.Converter, ann: nn.Module) -> nn.Module:
        """Standardize, check and fuse a copy of the network."""
        if any(isinstance(module, SpikingNetwork | BurstIFNode) for module in ann.modules()):
            raise TypeError("the network is converted already; pass the one it was converted from")
        example = torch.cat([x[:2] for x in take(self.calibration_loader, 2, "calibration_loader")])
        example = example.to(converter.device)
        self._example = torch.cat([example, example])[:2]
        if self.options.coding != "direct" and not example.is_floating_point():
            raise ValueError(
                f"coding={self.options.coding!r} needs images of real numbers, the loader yields "
                f"{example.dtype}; scale them in the loader, or use coding='direct'"
            )
        gm, problems = rewrite(plain_copy(ann).to(converter.device), self._example)
        ann = copy.deepcopy(ann).to(converter.device)  # with its hooks
        check_supported(gm, self._example, problems)
        check_equal(gm, ann, self._example)
        check_batch_independent(gm, self._example)
        fuse(gm, self._example)
        check_equal(gm, ann, self._example)
        if not activation_names(gm):
            raise ValueError(
                "the network has no ReLU (or ReLU6, Hardtanh(0, k), clamp(0, k), RateNorm, "
                "QCFS) to convert"
            )
        self._trained = clip_bounded(gm)
        return gm

    def calibrate(self, converter: ann2snn.Converter, fx_model: fx.GraphModule) -> fx.GraphModule:
        """Collect the statistics of every activation over the calibration set."""
        fx_model.eval()  # tracing marks the root as training
        options = self.options
        given = options.threshold == "trained" and options.potential != "ann"  # nothing to observe
        self._statistics = observe(
            fx_model,
            [self._example] if given else self.calibration_loader,
            channel_wise=self.options.channel_wise,
            device=converter.device,
            progress=self.progress,
        )
        return fx_model

    def replace(self, converter: ann2snn.Converter, fx_model: fx.GraphModule) -> fx.GraphModule:
        """Put burst neurons and spiking pooling in the place of activations and max-pooling."""
        max_spikes = self.options.max_spikes_of(self._statistics)
        neurons = {
            name: self._neuron(name, statistics, max_spikes[name])
            for name, statistics in self._statistics.items()
        }
        dtype = next(fx_model.parameters(), self._example).dtype
        for neuron in neurons.values():
            neuron.to(dtype)  # a half-precision network stays one
        self._ann_modules = place(fx_model, neurons, self.options.max_pool) | self._trained
        return fx_model.to(converter.device)

    def _neuron(self, name: str, statistics: ActivationStatistics, max_spikes: float) -> BurstIFNode:
        options = self.options
        transfer = Transfer(options.time_steps, max_spikes, POTENTIAL_FRACTIONS[options.potential])
        try:
            threshold = fit_threshold(statistics, options.threshold, transfer)
        except ValueError as error:
            raise ValueError(f"activation {name!r}: {error}") from None
        v_init = POTENTIAL_RULES[options.potential](statistics, transfer, threshold)
        if not options.channel_wise:
            threshold, v_init = threshold.squeeze(), v_init.squeeze()
        shift = threshold / (2 * options.time_steps) if options.shift else None
        return new_neuron(options, threshold, max_spikes, v_init, shift)

    def finalize(self, converter: ann2snn.Converter, fx_model: fx.GraphModule) -> nn.Module:
        """Code the input, calibrate layer by layer, and wrap the graph."""
        options = self.options
        largest = None if options.coding == "direct" else self._largest_input()
        encode_input(fx_model, options, largest)
        hold_constants(fx_model, self._example)
        fits = list(_CALIBRATIONS[options.calibration])
        if options.potential == "data":
            fits.insert(fits.index("weights") + 1 if "weights" in fits else 0, "potential")
        if fits:
            sweep(
                fx_model,
                self._ann_modules,
                list(self._sweep_images(fx_model).split(32)),
                options.time_steps,
                [FITS[name] for name in fits],
                device=torch.device(converter.device),
                progress=self.progress,
            )
        reset_net(fx_model)
        shape = tuple(self._example.shape[1:])
        dead = {name: int(statistics.dead.sum()) for name, statistics in self._statistics.items()}
        fitted = options.threshold != "trained"  # nothing was observed, nothing had to be filled in
        unseen = {name: count for name, count in dead.items() if count and fitted}
        dtype = self._example.dtype
        return SpikingNetwork(fx_model, dataclasses.asdict(options), shape, unseen, dtype).eval()

    def _sweep_images(self, fx_model: fx.GraphModule) -> Tensor:
        """Calibration images, of all processes, as many as asked for and fit into memory."""
        values = record(fx_model, self._example).values()
        reset_net(fx_model)
        largest = max(v.numel() * v.element_size() for v in values if isinstance(v, Tensor))
        fitting = int(_SWEEP_BYTES * len(self._example) / (largest * self.options.time_steps))
        count = max(1, min(self.options.calibration_images, fitting))
        images = torch.cat(take(self.calibration_loader, count, "calibration_loader"))
        return distributed.gather_samples(images)[:count]

    def _largest_input(self) -> Tensor:
        inputs = batches(self.calibration_loader, "calibration_loader")
        largest = distributed.maximum(torch.stack([x.abs().max() for x, _ in inputs]).max()).item()
        return self._example.new_tensor(largest or 1.0)


def new_neuron(
    options: Options,
    threshold: Tensor,
    max_spikes: float,
    v_init: float | Tensor = 0.0,
    shift: Tensor | None = None,
) -> BurstIFNode:
    """The neuron that ``inactivated_spikes`` asks for."""
    if options.inactivated_spikes == "spike_calibration":
        return SpikeCalibratedNode(threshold, max_spikes, v_init, shift, options.allowance)
    signed = options.inactivated_spikes == "signed"
    return BurstIFNode(threshold, max_spikes, v_init, shift, signed)


def place(gm: fx.GraphModule, neurons: Mapping[str, nn.Module], max_pool: str) -> dict[str, nn.Module]:
    """Put neurons and spiking pooling into a standardized graph; returns what they replaced.

    They run on the fastest backend that is installed.
    """
    replaced = {}
    moving = depends_on_input(gm)
    for node in [n for n in gm.graph.nodes if n in moving]:
        name = str(node.target)
        if is_module(gm, node, MAX_POOLS):
            replaced[name] = gm.get_submodule(name)
            gm.set_submodule(name, spiking_pool(replaced[name], max_pool))
        elif node.op == "call_module" and name in neurons:
            replaced[name] = gm.get_submodule(name)
            gm.set_submodule(name, neurons[name])
    set_backend(gm, "auto")
    return replaced


def clip_bounded(gm: fx.GraphModule) -> dict[str, nn.Module]:
    """Put ``Hardtanh(0, bound)`` in the place of bounded activations; returns what it replaced.

    Raises:
        ValueError: if a bound is not one positive, finite number.
    """
    replaced: dict[str, nn.Module] = {}
    for name in activation_names(gm):
        module = gm.get_submodule(name)
        if isinstance(module, BoundedActivation):
            bound = torch.as_tensor(module.bound)
            if bound.numel() != 1 or not 0 < bound.item() < math.inf:
                raise ValueError(
                    f"activation {name!r}: its bound is {bound.tolist()}, and must be one positive "
                    "number; train the network again"
                )
            replaced[name] = module
            gm.set_submodule(name, nn.Hardtanh(0.0, bound.item()))
    return replaced


def encode_input(gm: fx.GraphModule, options: Options, largest: Tensor | None) -> None:
    """Insert the encoder that ``coding`` asks for; ``largest`` is the largest |x| it codes."""
    if largest is None:
        return
    encoder = ENCODERS[options.coding](largest, options.time_steps)
    source = next(node for node in gm.graph.nodes if node.op == "placeholder")
    gm.add_submodule("encoder", encoder.to(largest.device))
    with gm.graph.inserting_after(source):
        coded = gm.graph.call_module("encoder", (source,))
    source.replace_all_uses_with(coded, delete_user_cb=lambda user: user is not coded)
    gm.recompile()


@torch.no_grad()
def observe(
    gm: fx.GraphModule,
    loader: Iterable[Any],
    *,
    channel_wise: bool,
    device: torch.device | str,
    progress: bool = True,
) -> dict[str, ActivationStatistics]:
    """Statistics of every activation of a standardized graph over a calibration set.

    Args:
        gm: a standardized graph.
        loader: calibration batches.
        channel_wise: one set of statistics per channel.
        device: where the graph runs.
        progress: show a progress bar.

    Raises:
        ValueError: if the loader is empty, or an activation is NaN or infinite.
    """
    statistics: dict[str, ActivationStatistics] = {}
    handles = []
    for name in activation_names(gm):
        module = gm.get_submodule(name)
        upper = module.max_val if isinstance(module, nn.Hardtanh) else math.inf
        statistics[name] = ActivationStatistics(channel_wise, upper)

        def hook(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            try:
                statistics[name].update(inputs[0])
            except ValueError as error:
                raise ValueError(
                    f"{error} before the activation {name!r}; check the calibration images and the "
                    "network's weights"
                ) from None

        handles.append(module.register_forward_pre_hook(hook))
    try:
        pairs = batches(loader, "calibration_loader")
        shape = None
        for x, _ in tqdm(pairs, "calibrate", disable=not progress, leave=False):
            shape = shape or x.shape[1:]
            try:
                gm(x.to(device))
            except RuntimeError as error:
                if x.shape[1:] == shape:
                    raise
                raise ValueError(
                    f"calibration_loader yields inputs of shapes {list(shape)} and {list(x.shape[1:])}, "
                    "and not both can be taken; bring them to one, or try channel_wise=False"
                ) from error
    finally:
        for handle in handles:
            handle.remove()
    for found in statistics.values():
        found.all_reduce()
    return statistics
