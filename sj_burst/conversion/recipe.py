"""The conversion as a recipe for SpikingJelly's converter, and as a function."""

import contextlib
import copy
import functools
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from spikingjelly.activation_based import ann2snn
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, fx, nn

from ..graph.check import why_held
from ..graph.evaluate import record
from ..modules.neuron import BurstIFNode
from ..network import InputKind, SpikingNetwork
from ..options import Options
from ..rules.burst_allocation import allocate_bursts
from ..rules.potential import POTENTIAL_FRACTIONS, POTENTIAL_RULES
from ..rules.statistics import ActivationStatistics
from ..rules.threshold import fit_threshold
from ..rules.transfer import Transfer
from ..utils import distributed
from ..utils.checks import check_network
from ..utils.exclusive import CONVERTING
from ..utils.inputs import Inputs, bind, join, rows
from ..utils.loader import Pictures, batches, check_loader, first_samples
from ..utils.outputs import map_tensors, tensors_of
from ..utils.spill import free_room
from .adafire import measure_bursts
from .assemble import assemble, encoder_names, new_neuron, slope_below_zero
from .calibration import calibrate_layers
from .energy import ThresholdBudget
from .expected import expect_spikes
from .fits import FITS
from .layer import Layer
from .observe import observe
from .prepare import prepare
from .rounding import round_layer
from .sensitivity import Sensitivity, measure_sensitivity
from .weights import round_all, round_weights, weighted_layers

__all__ = ["BurstRecipe", "convert"]

# calibration option → what is fitted in each layer, in this order.
_CALIBRATIONS = {"none": [], "light": ["bias"], "advanced": ["weights", "mean", "threshold", "bias"]}

# Of a batch's largest activations in all steps: on a CPU what malloc keeps, which saves page faults.
_BATCH_BYTES = {"cpu": 2**25}
_LARGEST_BATCH_BYTES = 2**30  # elsewhere
_LARGEST_BATCH = 32
_MEASURED = 64  # images that tell what a network spends, what is expected, or what a layer's Γ does
_ADAFIRE_TIMES = 2  # the mean Γ, at most, and to begin with
_ROUNDS = 6  # of corrections by what was measured, before and after calibration
_LAYERS_HELD = 4  # of the largest layers, at most, as real numbers in all steps


def convert(
    ann: nn.Module,
    loader: Iterable[Any],
    options: Options | None = None,
    *,
    time_dim: int | None = None,
    frames: str = "mean",
    device: torch.device | str | None = None,
    progress: bool = True,
    **fields: Any,
) -> SpikingNetwork:
    r"""Convert a trained ReLU network to a spiking one.

    The same as ``ann2snn.Converter(BurstRecipe(loader, options), device).convert(ann)`` with
    SpikingJelly's converter. One thread converts at a time, and no other thread may run a network in
    the meantime: torch.fx patches ``nn.Module`` while it traces.

    Functions after the last neuron that a mean over time does not pass (softmax, sigmoid, normalize,
    products of outputs, …) become the network's read-out,
    :math:`\text{answer} = r(\frac1T \sum_t o(t))` with the outputs o(t) before them; see
    :attr:`SpikingNetwork.readout <sj_burst.network.SpikingNetwork>`.

    Args:
        ann: a trained network; stays as it is.
        loader: training batches, ``(input, target)`` or inputs; read several times. For a network that
            takes several inputs, as for :func:`sj_burst.simulate`.
        options: an :class:`Options`; ``None`` for the defaults.
        time_dim: for inputs that change from step to step, as for :func:`sj_burst.simulate`.
        frames: what of such a sequence calibrates: ``"mean"`` its mean frame, of which the ANN's answer
            is what rates approach; ``"each"`` every frame as a picture of its own.
        device: where to convert, and where the spiking network is; ``None`` for where ``ann`` is.
        progress: show progress bars.
        **fields: options by name, in place of those in ``options``.

    Returns:
        The spiking network in eval mode.

    Raises:
        TypeError: for an unknown option, a loader that cannot be read, or an ``ann`` that is no network.
        ValueError: for a bad value, or a network that cannot be converted; all reasons at once.

    Source: Li & Zeng, IJCAI 2022; the options name theirs.

    Example:
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> snn = convert(ann, [torch.rand(16, 3)], time_steps=4, progress=False)
        >>> snn.run(torch.rand(5, 3), time_steps=4).shape
        torch.Size([4, 5, 2])
    """
    check_network(ann=ann)
    recipe = BurstRecipe(loader, options, time_dim=time_dim, frames=frames, progress=progress, **fields)
    return ann2snn.Converter(recipe, device).convert(ann)


@dataclass
class _Conversion:
    """What one conversion carries from hook to hook."""

    x: Any  # example input [2, ...], or several
    graph: fx.GraphModule
    readout: nn.Module
    replaced: dict[str, nn.Module] = field(default_factory=dict)  # the ANN's modules, by name
    statistics: dict[str, ActivationStatistics] = field(default_factory=dict)
    sensitivity: Sensitivity = field(default_factory=Sensitivity)
    neurons: dict[str, BurstIFNode] = field(default_factory=dict)


def _hook(function: Callable[..., Any]) -> Callable[..., Any]:
    """A step of the recipe: without autocast and inference mode; a failure leaves nothing behind."""

    @functools.wraps(function)
    def run(self: "BurstRecipe", converter: ann2snn.Converter, model: nn.Module) -> Any:
        kinds = {"cpu", torch.device(converter.device).type}
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(torch.inference_mode(False))
                for kind in kinds:
                    stack.enter_context(torch.autocast(kind, enabled=False))
                return function(self, converter, model)
        except BaseException:
            self._end()
            raise

    return run


def _warn_of_allowance(options: Options) -> None:
    """Say so where spike calibration cannot act in the steps that the network is fitted for."""
    acts_from = options.allowance + 2  # a spike in the first step, then a silence longer than A
    if options.inactivated_spikes == "spike_calibration" and acts_from > options.time_steps:
        warnings.warn(
            f"inactivated_spikes='spike_calibration' with allowance={options.allowance} acts from "
            f"T = {acts_from} on; with time_steps={options.time_steps} the network is that of "
            "inactivated_spikes='allow'; take a smaller allowance or more time steps",
            stacklevel=2,
        )


class _Rounding:
    """Rounds layers when calibration comes to them.

    Args:
        bits: of the weights of every linear and convolutional module.
    """

    def __init__(self, bits: Mapping[nn.Module, int]) -> None:
        self._bits = bits

    def of_layer(self, layer: Layer) -> None:
        """Round the weights before a neuron, if they are its own."""
        if layer.affine is not None:
            round_layer(layer, self._bits[layer.affine])

    def of_module(self, module: nn.Module, unit: Tensor | None) -> None:
        """Round weights that no neuron has to itself."""
        round_weights(module, self._bits[module], unit)


class BurstRecipe(ann2snn.FXConversionRecipe):
    """Recipe for SpikingJelly's converter: a trained ReLU network to burst neurons.

    ``ann2snn.Converter(BurstRecipe(loader, time_steps=8, max_spikes=4)).convert(ann)`` returns a
    :class:`~sj_burst.network.SpikingNetwork` in eval mode; ``ann`` stays as it was.
    :func:`sj_burst.convert` is the same in one line.

    Args:
        calibration_loader: training batches, ``(input, target)`` or inputs; read several times.
        options: an :class:`Options`; ``None`` for the defaults.
        time_dim: for inputs that change from step to step, as for :func:`sj_burst.simulate`.
        frames: what of such a sequence calibrates: ``"mean"`` its mean frame, of which the ANN's answer
            is what rates approach; ``"each"`` every frame as a picture of its own.
        progress: show progress bars.
        **fields: options by name, in place of those in ``options``.

    Raises:
        TypeError: for an unknown option, or a loader that cannot be read.
        ValueError: for a bad value, and during conversion for a network that cannot be converted.

    Source: Li & Zeng, IJCAI 2022; the options name theirs.

    Example:
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> recipe = BurstRecipe([torch.rand(16, 3)], Options.preset("opi"), progress=False)
        >>> snn = ann2snn.Converter(recipe).convert(ann)
        >>> snn.run(torch.rand(5, 3), time_steps=4).shape
        torch.Size([4, 5, 2])
    """

    def __init__(
        self,
        calibration_loader: Iterable[Any],
        options: Options | None = None,
        *,
        time_dim: int | None = None,
        frames: str = "mean",
        progress: bool = True,
        **fields: Any,
    ) -> None:
        if options is not None and not isinstance(options, Options):
            raise TypeError(f"options must be an sj_burst.Options, got {type(options).__name__}")
        check_loader(calibration_loader, "calibration_loader")
        self.calibration_loader = calibration_loader
        self.progress = progress
        self.options = (options or Options()).changed(**fields)
        self.time_dim = time_dim
        self._pictures = Pictures(calibration_loader, "calibration_loader", time_dim, frames)
        if time_dim is not None and self.options.coding == "compensated":
            raise ValueError(
                "coding='compensated' adds what rate coding loses of an input that is held; with "
                f"time_dim={time_dim} take coding='direct' or 'rate'"
            )
        self._work: _Conversion | None = None

    def __repr__(self) -> str:
        return f"BurstRecipe({type(self.calibration_loader).__name__}, {self.options})"

    # The hooks below are called by SpikingJelly's converter, in this order.

    def validate(self, converter: ann2snn.Converter) -> None:
        """Wait until no other thread converts."""
        CONVERTING.begin()

    @_hook
    def before_trace(self, converter: ann2snn.Converter, ann: nn.Module) -> nn.Module:
        """Standardize, check and fuse a copy of the network."""
        _warn_of_allowance(self.options)
        found = [x.value for x in first_samples(self._pictures, 2, "calibration_loader")]
        x = Inputs(join(found * 2))[:2].to(converter.device).value
        coded = self.options.coding != "direct"
        whole = [t.dtype for t in tensors_of(x).values() if not t.is_floating_point()]
        if coded and whole:
            raise ValueError(
                f"coding={self.options.coding!r} needs images of real numbers, the loader yields "
                f"{whole[0]}; scale them in the loader, or use coding='direct'"
            )
        direct = not coded and self.time_dim is None
        potential = self.options.output == "potential"
        self._work = _Conversion(x, *prepare(ann, x, direct=direct, potential=potential))
        return nn.Identity()  # for the converter to trace: the graph is there

    @_hook
    def after_trace(self, converter: ann2snn.Converter, fx_model: fx.GraphModule) -> fx.GraphModule:
        """The prepared graph, in the place of the stand-in that was traced."""
        return self._open.graph

    @_hook
    def calibrate(self, converter: ann2snn.Converter, fx_model: fx.GraphModule) -> fx.GraphModule:
        """Collect the statistics of every activation over the calibration set."""
        rule = self.options.threshold
        needless = rule == "trained" and self.options.potential != "ann"
        given = needless and self.options.burst_allocation == "uniform"
        self._open.statistics = observe(
            fx_model,
            [(self._open.x,)] if given else self._pictures,  # nothing to observe
            channel_wise=self.options.channel_wise,
            device=converter.device,
            progress=self.progress,
        )
        if rule == "rate_distortion" or self.options.burst_allocation == "sensitivity":
            count = self.options.calibration_images
            images = Inputs(join([x.value for x in self._images(count)]))
            parts = [images[i : i + _LARGEST_BATCH] for i in range(0, len(images), _LARGEST_BATCH)]
            self._open.sensitivity = measure_sensitivity(
                fx_model, parts, converter.device, channel_wise=self.options.channel_wise
            )
        return fx_model

    def _images(self, count: int) -> list[Inputs]:
        return first_samples(self._pictures, count, "calibration_loader")

    @_hook
    def replace(self, converter: ann2snn.Converter, fx_model: fx.GraphModule) -> fx.GraphModule:
        """Make a neuron for every activation, and turn the graph into a spiking one."""
        work = self._open
        max_spikes = self._max_spikes(fx_model, converter.device)
        work.replaced = self._assemble(fx_model, max_spikes) | work.replaced
        return fx_model.to(converter.device)

    def _assemble(
        self, fx_model: fx.GraphModule, max_spikes: Mapping[str, float]
    ) -> dict[str, nn.Module]:
        """Turn a prepared graph into a spiking one; returns what was replaced."""
        work = self._open
        dtype = next(
            fx_model.parameters(), next(iter(tensors_of(work.x).values()))
        ).dtype  # a half-precision network stays one
        neurons = {
            name: self._neuron(
                name, statistics, max_spikes[name], slope_below_zero(fx_model.get_submodule(name))
            ).to(dtype)
            for name, statistics in work.statistics.items()
        }
        largest = {} if self.options.coding == "direct" else self._largest_inputs(fx_model)
        return assemble(fx_model, neurons, self.options, largest, work.x)

    def _max_spikes(self, fx_model: fx.GraphModule, device: torch.device | str) -> Mapping[str, float]:
        """Γ of every layer, before there are neurons."""
        work, options = self._open, self.options
        everywhere = options.max_spikes_of(work.statistics)
        if options.burst_allocation == "uniform":
            return everywhere
        mean = int(next(iter(everywhere.values())))
        if options.burst_allocation == "sensitivity":
            weight, size = work.sensitivity.weight, work.sensitivity.size
            neurons = {name: size[name].numel() for name in work.statistics}
            rule = "mse" if options.threshold == "rate_distortion" else options.threshold
            return allocate_bursts(work.statistics, weight, neurons, self._transfer(mean), rule)
        trial = copy.deepcopy(fx_model)
        self._assemble(trial, dict.fromkeys(work.statistics, _ADAFIRE_TIMES * mean))
        snn = self._wrapped(trial.to(device))
        batches = self._calibration_batches(snn.graph, min(_MEASURED, options.calibration_images))
        images = [Inputs(x).to(device).value for x in batches]
        return measure_bursts(snn, fx_model.to(device), images, mean, self.progress)

    def _transfer(self, max_spikes: float) -> Transfer:
        fraction = POTENTIAL_FRACTIONS[self.options.potential]
        return Transfer(self.options.time_steps, max_spikes, fraction)

    def _neuron(
        self,
        name: str,
        statistics: ActivationStatistics,
        max_spikes: float,
        negative_slope: float | Tensor | None,
    ) -> BurstIFNode:
        options = self.options
        transfer = self._transfer(max_spikes)
        # By rate and distortion they are chosen together, once there is a network to count in.
        rule = "mse" if options.threshold == "rate_distortion" else options.threshold
        try:
            # A channel that is as good as silent: what divides by its threshold stays finite.
            threshold = fit_threshold(statistics, rule, transfer).clamp_min(1e-30)
        except ValueError as error:
            raise ValueError(f"activation {name!r}: {error}") from None
        v_init = POTENTIAL_RULES[options.potential](statistics, transfer, threshold)
        if not options.channel_wise:
            threshold, v_init = threshold.squeeze(), v_init.squeeze()
        shift = threshold / (2 * options.time_steps) if options.potential == "shift" else None
        return new_neuron(options, threshold, max_spikes, v_init, shift, negative_slope)

    @_hook
    def finalize(self, converter: ann2snn.Converter, fx_model: fx.GraphModule) -> nn.Module:
        """Wrap the graph, choose thresholds within a budget, and calibrate layer by layer."""
        snn = self._wrapped(fx_model)
        if self.options.threshold == "rate_distortion":
            snn = self._within_budget(snn)
        else:
            self._fit_layers(snn, self.options.calibration_images)
        self._expect(snn)
        reset_net(snn)
        self._end()
        return snn.eval()

    def _wrapped(self, fx_model: fx.GraphModule) -> SpikingNetwork:
        work, options = self._open, self.options
        dead = {name: int(statistics.dead.sum()) for name, statistics in work.statistics.items()}
        fitted = options.threshold != "trained"  # nothing was observed, nothing had to be filled in
        dead = {name: count for name, count in dead.items() if count and fitted}
        inputs = {
            str(node.target): InputKind(tuple(x.shape[1:]), x.dtype)
            for node, x in bind(fx_model, work.x).items()
        }
        held_only = why_held(fx_model, work.x)
        return SpikingNetwork(fx_model, options, inputs, dead, work.readout, held_only).eval()

    def _fit_layers(self, snn: SpikingNetwork, images: int) -> None:
        """The fits that the options name, layer by layer on so many images, in place."""
        options, gm = self.options, snn.graph
        bits = options.weight_bits_of(weighted_layers(gm))
        rounding = _Rounding({gm.get_submodule(name): b for name, b in (bits or {}).items()})
        fits = self._fits(rounding.of_layer)
        if fits:
            calibrate_layers(
                gm,
                self._open.replaced,
                self._calibration_batches(gm, images),
                options.time_steps,
                fits,
                device=snn.device,
                unowned=None if bits is None else rounding.of_module,
                readout=snn.readout,
                progress=self.progress,
            )
        if bits is not None:  # without calibration, or again to what they are
            round_all(gm, bits, self._open.x)

    def _fits(self, rounding: Callable[[Layer], None] | None = None) -> list[Callable[[Layer], None]]:
        """What is fitted in each layer, in this order."""
        options = self.options
        fits = list(_CALIBRATIONS[options.calibration])
        if options.threshold == "rate_distortion":  # they were chosen
            fits = [fit for fit in fits if fit not in ("mean", "threshold")]
        if options.potential == "data":
            fits.insert(fits.index("weights") + 1 if "weights" in fits else 0, "potential")
        named = dict(FITS)
        if options.weight_bits is not None and rounding is not None and fits:
            named["round"] = rounding
            fits.insert(fits.index("weights") + 1 if "weights" in fits else 0, "round")
        return [named[name] for name in fits]

    def _within_budget(self, snn: SpikingNetwork) -> SpikingNetwork:
        """Thresholds by rate and distortion, with what calibration does to their energy in mind."""
        work, options = self._open, self.options
        assert options.energy_budget is not None  # it comes with the rule
        max_spikes = {name: node.max_spikes for name, node in snn.neurons().items()}
        one = Inputs(work.x)[:1]
        if self.time_dim is not None:  # a frame of a sequence
            one = Inputs(map_tensors(lambda t: t.unsqueeze(1), one.value), sequence=True)
        plan = ThresholdBudget(
            snn,
            one,
            work.statistics,
            work.sensitivity,
            {name: self._transfer(most) for name, most in max_spikes.items()},
            options.energy_budget,
        )
        shown, time_dim = self._shown()
        images = [(x.to(snn.device).value,) for x in shown]  # a tuple is no target
        for calibrated in (False, True) if self._fits() else (False,):
            plan.forget()
            for _ in range(_ROUNDS):
                plan.spend(snn)
                tried = snn
                if calibrated:
                    tried = copy.deepcopy(snn)
                    self._fit_layers(tried, min(_MEASURED, options.calibration_images))
                self._expect(tried)
                if plan.correct(tried, images, time_dim):
                    break
            plan.settle()
        plan.warn_of_excess()
        plan.spend(snn)
        self._fit_layers(snn, options.calibration_images)
        return snn

    def _expect(self, snn: SpikingNetwork) -> None:
        """Expected spikes, if the options ask for them, from as many images as tell what is spent."""
        if self.options.expected_spikes == "none":
            return
        images, time_dim = self._shown()
        count = sum(map(len, images))
        expect_spikes(snn, [(x.value,) for x in images], images=count, time_dim=time_dim)

    def _shown(self) -> tuple[list[Inputs], int | None]:
        """Some images as they will be shown, and which dimension of them is time.

        Sequences that do not last T steps are held, at their mean.
        """
        count = min(_MEASURED, self.options.calibration_images)
        if self.time_dim is None:
            return self._images(count), None
        found: list[Inputs] = []
        for x, _ in batches(self.calibration_loader, "calibration_loader", self.time_dim):
            if x.steps != self.options.time_steps:
                return self._images(count), None
            found.append(x[:count])
            count -= len(found[-1])
            if count == 0:
                break
        return found, 1

    @property
    def _open(self) -> _Conversion:
        """The conversion under way."""
        assert self._work is not None, "the hooks of a recipe are called by SpikingJelly's converter"
        return self._work

    def _end(self) -> None:
        """Forget the network, and let the next conversion begin."""
        self._work = None
        CONVERTING.end()

    def _calibration_batches(self, fx_model: fx.GraphModule, wanted: int) -> list[Any]:
        """Calibration images, of all processes, as many as wanted if memory and disk hold them."""
        x = self._open.x
        values = record(fx_model, x).values()
        reset_net(fx_model)
        largest = max(v.numel() * v.element_size() for v in values if isinstance(v, Tensor)) / rows(x)
        largest *= self.options.time_steps
        room = -distributed.maximum(torch.tensor(-float(free_room()), dtype=torch.float64)).item()
        fitting = max(1, int(room / (_LAYERS_HELD * largest)))  # on every process
        found = first_samples(self._pictures, min(wanted, fitting + 1), "calibration_loader")
        images = Inputs(map_tensors(distributed.gather_samples, join([part.value for part in found])))
        if min(wanted, len(images)) > fitting:
            warnings.warn(
                f"calibration_images={wanted}: only the first {fitting} of {wanted} images are used, "
                f"because memory and the folder for temporary files have room for {room / 2**30:.3g} "
                f"GiB, and what an image needs in all {self.options.time_steps} time steps may take "
                f"{_LAYERS_HELD * largest / 2**30:.3g} GiB; set TMPDIR to a folder with more room, take "
                f"fewer steps, or ask for {fitting}",
                stacklevel=2,
            )
        device = Inputs(x).device
        bytes_at_once = _BATCH_BYTES.get(device.type, _LARGEST_BATCH_BYTES)
        size = min(_LARGEST_BATCH, max(1, int(bytes_at_once / largest)))
        images = images[: min(wanted, fitting)]
        return [images[i : i + size].value for i in range(0, len(images), size)]

    def _largest_inputs(self, fx_model: fx.GraphModule) -> dict[str, Tensor]:
        """The largest magnitude of each input, of single frames too, by the name of its encoder."""
        found = batches(self.calibration_loader, "calibration_loader", self.time_dim)
        each = [[t.abs().max() for t in bind(fx_model, x.value).values()] for x, _ in found]
        examples = bind(fx_model, self._open.x).values()
        largest = {}
        for name, values, x in zip(
            encoder_names(fx_model).values(), zip(*each, strict=True), examples, strict=True
        ):
            most = distributed.maximum(torch.stack(values).max()).item()
            largest[name] = x.new_tensor(most or 1.0)
        return largest
