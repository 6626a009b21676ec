"""Parameter calibration: one forward sweep that fits each layer on its already spiking predecessors."""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, fx, nn
from torch.nn import grad
from tqdm import tqdm

from .bounded import BoundedActivation
from .graph.presentation import laid_out
from .graph.trace import call_sites, depends_on_input, is_module, record
from .neuron import BurstIFNode
from .temporal import TemporalModule, Window

__all__ = [
    "FITS",
    "Layer",
    "correct_bias",
    "correct_potential",
    "refit_threshold",
    "refit_weights",
    "sweep",
]

_SUMS = {operator.add, operator.iadd, torch.add}
_AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)


@dataclass
class Layer:
    """One layer during the sweep: what reaches it, and what the ANN has in its place.

    Attributes:
        name: of the neuron, or of the affine module that ends the network.
        node: the neuron; ``None`` for the last affine module.
        affine: the module whose output is the neuron's input (but for a residual), if it has no
            other use; the sweep evaluates it again after its parameters changed.
        evaluate: returns per batch the input current ``[T·N, ...]``, or ``[N, ...]`` if constant in
            time, of the affine module as it is now.
        inputs: per batch the mean over T of ``affine``'s input ``[N, ...]``.
        wanted: per batch what ``affine`` should return for it: the ANN's pre-activation less the
            mean of the residual ``[N, ...]``.
        residuals: per batch that mean, or zero.
        targets: per batch the ANN's activation ``[N, ...]``.
        time_steps: T.
        device: where the network runs; the values above are on the CPU.
        bounded: whether the activation has an upper bound, which fixes the threshold.
    """

    name: str
    node: BurstIFNode | None
    affine: Any
    evaluate: Callable[[], list[Tensor]]
    inputs: list[Tensor]
    wanted: list[Tensor]
    residuals: list[Any]
    targets: list[Tensor]
    time_steps: int
    device: torch.device
    bounded: bool = False

    def rates(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Mean weighted output over T, and the ANN's activation, of every batch."""
        for z, a in zip(self.evaluate(), self.targets, strict=True):
            y = z.to(self.device)
            if self.node is not None:
                y = run_temporal(self.node, y, Window(self.time_steps, len(a)))
            yield time_mean(y, len(a)), a.to(self.device)

    def mean_error(self) -> Tensor:
        """Mean over samples of target minus rate, in the shape of one sample."""
        errors = torch.stack([(a - phi).sum(0) for phi, a in self.rates()])
        return errors.sum(0) / sum(map(len, self.targets))


def run_temporal(module: TemporalModule, x: Tensor, window: Window) -> Tensor:
    """All T steps of a stateful module on a folded batch, from a fresh state."""
    module.reset()
    mode, module.step_mode, module.window = module.step_mode, "m", window
    try:
        return module(x)
    finally:
        module.step_mode, module.window = mode, None
        module.reset()


def time_mean(x: Tensor, batch: int) -> Tensor:
    """Mean over the steps of a folded batch; what is constant in time is its own mean."""
    first, *others = x.split(batch)
    if not others:
        return x
    total = first.clone()
    for step in others:  # several times faster than a mean over the leading dimension
        total += step
    return total / (1 + len(others))


def _channel_mean(error: Tensor) -> Tensor:
    """Mean over everything but the channels of one sample ``[C, ...]``."""
    return error.flatten(1).mean(1) if error.dim() > 1 else error


def correct_bias(layer: Layer, rounds: int = 3) -> None:
    r"""Light calibration: remove the mean error of every channel.

    .. math::
        b_c \leftarrow b_c + \mathbb{E}[a]_c - \mathbb{E}[\phi]_c

    repeated, because a neuron answers a change of its bias only in part. The bias is carried by the
    neuron's ``shift``, a constant current, which exists for residual sums and shared layers too; the
    last affine module takes it itself.

    Source: Li et al., "A free lunch from ANN: towards efficient, accurate spiking neural networks
    calibration", ICML 2021.
    """
    for _ in range(rounds):
        error = layer.mean_error()
        if layer.node is not None:
            shift, correction = layer.node.shift, _channel_mean(error)
            if shift is not None and shift.dim() != 1:
                shift = shift.expand_as(correction)
            layer.node.shift = correction if shift is None else shift + correction
        elif layer.affine is not None:
            channel_first = error.movedim(-1, 0) if isinstance(layer.affine, nn.Linear) else error
            _add_bias(layer.affine, _channel_mean(channel_first))
            return  # affine: one round is exact


def correct_potential(layer: Layer, rounds: int = 3) -> None:
    r"""Fit the initial membrane potential on the spiking prefix, per channel.

    .. math::
        v(0)_c \leftarrow v(0)_c + T\,(\mathbb{E}[a]_c - \mathbb{E}[\phi]_c)

    Derived here from the error equation of the IC-SNN article (φ = mean z − (v(T) − v(0))/T), whose
    Algorithm 2 ("based on training set") is printed as a figure.

    Source: after Li et al., "IC-SNN", 2023; potential calibration of Li et al., ICML 2021.
    """
    if layer.node is None:
        return
    for _ in range(rounds):
        correction = layer.time_steps * _channel_mean(layer.mean_error())
        layer.node.v_init = layer.node.v_init + correction


def refit_threshold(layer: Layer, factors: tuple[float, ...] = (0.7, 0.8, 0.9, 1.1, 1.2, 1.35)) -> None:
    r"""Scale threshold and initial potential of each channel to the least error on real spikes.

    .. math::
        f^* = \arg\min_f \| \phi(f\theta, f v_0) - a \|^2

    The threshold rules assume a constant current of the ANN's distribution; this looks at the
    current that the calibrated prefix really sends, on the first 64 images. Bounded activations
    keep their thresholds. Our own addition.
    """
    node = layer.node
    if node is None or layer.bounded:
        return
    currents = layer.evaluate()[:2]
    some = replace(layer, evaluate=lambda: currents, targets=layer.targets[:2])
    threshold, v_init = node.threshold, node.v_init

    def cost(factor: float) -> Tensor:
        node.threshold, node.v_init = factor * threshold, factor * v_init
        squares = torch.stack([(phi - a).square().sum(0) for phi, a in some.rates()]).sum(0)
        return _channel_mean(squares) if threshold.dim() == 1 else squares.mean()

    costs = torch.stack([cost(factor) for factor in (1.0, *factors)])
    best = torch.tensor((1.0, *factors), device=costs.device, dtype=threshold.dtype)[costs.argmin(0)]
    node.threshold, node.v_init = best * threshold, best * v_init


def refit_weights(layer: Layer, ridge: float = 0.15, iterations: int = 4) -> None:
    r"""Advanced calibration: refit the affine map before the neuron by ridge regression.

    .. math::
        \min_{W, b} \sum \| \mathrm{ReLU}(W \bar y + b + \bar s) - a \|^2
        + \lambda \| W - W_0 \|^2

    with the mean spike input ȳ of the calibrated prefix, the ANN's activation a, the mean s̄ of a
    residual branch, and λ = ``ridge`` · mean of the diagonal of Σ ȳȳᵀ. The first iteration fits the
    ANN's pre-activation; the following ones ask of inactive neurons only that they stay below zero
    (each such step cannot raise the loss). The published method runs Adam on the activation; this
    closed form is our own variant. Layers it does not know (transposed, three-dimensional,
    ``padding_mode`` other than zeros, ``padding="same"`` of an even kernel, more than 8192 inputs per
    output) keep their weights.

    Source: after Li et al., ICML 2021, and "Parameter calibration", IJCV 2024.
    """
    module = layer.affine
    if module is None or not _has_patches(module):
        return
    groups = getattr(module, "groups", 1)
    gram: Any = 0.0  # Σ x xᵀ per group
    for y in layer.inputs:
        for part in y.split(_IMAGES_AT_ONCE):
            x = _patches(module, part.to(layer.device), groups)
            gram = gram + (x.mT @ x).double()
    penalty = gram.diagonal(dim1=1, dim2=2).clone()
    penalty[:, :-1] = ridge * penalty[:, :-1].mean(1, keepdim=True)
    penalty[:, -1] *= 1e-6  # the bias is not penalised
    penalty += 1e-12 * penalty.max()
    factor = torch.linalg.cholesky(gram + torch.diag_embed(penalty))
    original = _grouped(module.weight, groups).double()  # [G, outputs, inputs]
    for iteration in range(1 if layer.node is None else iterations):
        moment, missing = _moment(layer, groups, one_sided=iteration > 0)
        # The penalty pulls to the original weights, not to those of the last iteration.
        weight = _grouped(module.weight, groups).double()
        moment -= penalty[:, None, :-1] * (weight - original)
        update = torch.cholesky_solve(torch.cat([moment, missing], 2).mT, factor)
        new = weight + update[:, :-1].mT
        # New parameters, not in place: another module may be tied to the old ones.
        dtype, shape = module.weight.dtype, module.weight.shape
        module.weight = nn.Parameter(new.reshape(shape).to(dtype))
        _add_bias(module, update[:, -1].flatten().to(dtype))


def _moment(layer: Layer, groups: int, one_sided: bool) -> tuple[Tensor, Tensor]:
    """Σ of what is missing in the output times the input, and Σ of what is missing, per group."""
    module: Any = layer.affine
    moment: Any = 0.0
    total: Any = 0.0
    for y, wanted, a, residual in zip(
        layer.inputs, layer.wanted, layer.targets, layer.residuals, strict=True
    ):
        y = y.to(layer.device)
        out = module(y)
        missing = wanted.to(layer.device) - out
        if one_sided:
            current = out + _move(residual, layer.device)
            missing = torch.where(a.to(layer.device) > 0, missing, -current.clamp_min(0))
        moment = moment + _grouped(_weight_gradient(module, y, missing), groups).double()
        dims = [d for d in range(missing.dim()) if d != _channel_dim(module) % missing.dim()]
        total = total + missing.sum(dims).double()
    return moment, total.view(groups, -1, 1)


def _weight_gradient(module: Any, x: Tensor, rows: Tensor) -> Tensor:
    """Σ rows xᵀ over all places where the module's weights meet the input ``x``."""
    if isinstance(module, nn.Linear):
        return rows.flatten(0, -2).mT @ x.flatten(0, -2)
    gradient = grad.conv1d_weight if isinstance(module, nn.Conv1d) else grad.conv2d_weight
    options = (module.stride, _padding(module), module.dilation, module.groups)
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        return gradient(x, module.weight.shape, rows, *options)


_IMAGES_AT_ONCE = 8  # unfolded patches are large


def _add_bias(module: Any, correction: Tensor) -> None:
    bias = module.bias.detach() + correction if module.bias is not None else correction
    module.bias = nn.Parameter(bias.detach().clone())


def _has_patches(module: Any) -> bool:
    if isinstance(module, nn.Linear):
        return module.in_features <= 8192
    if not isinstance(module, nn.Conv1d | nn.Conv2d) or _padding(module) is None:
        return False
    return module.padding_mode == "zeros" and module.weight[0].numel() <= 8192


def _padding(module: Any) -> tuple[int, ...] | None:
    """Zeros on either side of each dimension; ``None`` if the sides differ."""
    if not isinstance(module.padding, str):
        return tuple(module.padding)
    if module.padding == "valid":
        return (0,) * len(module.kernel_size)
    both = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    return None if any(zeros % 2 for zeros in both) else tuple(zeros // 2 for zeros in both)


def _grouped(weight: Tensor, groups: int) -> Tensor:
    return weight.detach().flatten(1).unflatten(0, (groups, -1))


def _channel_dim(module: nn.Module) -> int:
    return -1 if isinstance(module, nn.Linear) else 1


def _patches(module: Any, x: Tensor, groups: int) -> Tensor:
    """What each output sees, and a one for the bias: ``[groups, rows, inputs per group + 1]``."""
    if isinstance(module, nn.Linear):
        rows = x.reshape(1, -1, x.shape[-1])
    else:
        options = [module.kernel_size, module.dilation, _padding(module), module.stride]
        if isinstance(module, nn.Conv1d):  # a picture of height 1
            x = x.unsqueeze(2)
            options = [(fill, *o) for o, fill in zip(options, (1, 1, 0, 1), strict=True)]
        columns = F.unfold(x, *options)  # [N, C·k, positions]
        rows = columns.unflatten(1, (groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
    return torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], dim=2)


FITS: dict[str, Callable[[Layer], None]] = {
    "weights": refit_weights,
    "threshold": refit_threshold,
    "potential": correct_potential,
    "bias": correct_bias,
}


@torch.no_grad()
def sweep(
    gm: fx.GraphModule,
    ann_modules: Mapping[str, nn.Module],
    inputs: list[Tensor],
    time_steps: int,
    fits: Iterable[Callable[[Layer], None]],
    *,
    device: torch.device,
    progress: bool = True,
) -> None:
    """Walk through the network once, and fit every layer before it fires.

    Each node is evaluated once for the ANN and once, for all T steps, for the SNN, on values stored
    when its predecessors were; the time is linear in depth. Values are freed after their last use
    and kept on the CPU, whatever the device of the graph. Nothing is random.

    Args:
        gm: the converted graph, with neurons in place; its parameters are changed.
        ann_modules: the modules that neurons and spiking pooling took the place of, by name.
        inputs: calibration batches ``[N, ...]``.
        time_steps: T.
        fits: called in this order on each :class:`Layer`.
        device: where the graph runs.
        progress: show a progress bar.
    """
    _Sweep(gm, ann_modules, inputs, time_steps, device).run(list(fits), progress)


class _Sweep:
    def __init__(
        self,
        gm: fx.GraphModule,
        ann_modules: Mapping[str, nn.Module],
        inputs: list[Tensor],
        time_steps: int,
        device: torch.device,
    ) -> None:
        self.gm, self.ann_modules = gm, ann_modules
        self.inputs = [laid_out(x) for x in inputs]
        self.time_steps, self.device = time_steps, device
        self.interpreter = fx.Interpreter(gm)
        self.ann: dict[fx.Node, list[Any]] = {}
        self.snn: dict[fx.Node, list[Any]] = {}

    def run(self, fits: list[Callable[[Layer], None]], progress: bool) -> None:
        shapes = self._shapes()
        sources = {node: _affine_source(self.gm, node, shapes) for node in self._layers()}
        last_use = self._last_use(sources)
        # Evaluated when their layer is fitted, and not before.
        later = {n for node, source in sources.items() for n in self._refitted(node, *source)}
        nodes = [node for node in self.gm.graph.nodes if node.op != "output"]
        for node in tqdm(nodes, "calibrate layers", disable=not progress, leave=False):
            self.ann[node] = self._evaluate(node, self.ann)
            if node in sources:
                self._fit(node, *sources[node], fits)
            if node not in later:
                self.snn[node] = self._evaluate(node, self.snn)
            for value in [n for n, last in last_use.items() if last is node]:
                del self.ann[value], self.snn[value]

    def _layers(self) -> list[fx.Node]:
        """The neurons, and the affine modules after the last of them."""
        spiking: set[fx.Node] = set()  # nodes from which a neuron can be reached
        for node in reversed(self.gm.graph.nodes):
            if is_module(self.gm, node, BurstIFNode) or spiking.intersection(node.users):
                spiking.add(node)
        return [
            node
            for node in self.gm.graph.nodes
            if is_module(self.gm, node, BurstIFNode)
            or (node not in spiking and is_module(self.gm, node, _AFFINE))
        ]

    def _shapes(self) -> dict[Any, torch.Size]:
        """Of what every node returns that depends on the input, for some of the images."""
        values = record(self.gm, self.inputs[0][:2].to(self.device))
        reset_net(self.gm)
        moving = depends_on_input(self.gm)
        return {n: v.shape for n, v in values.items() if n in moving and isinstance(v, Tensor)}

    def _last_use(self, sources: dict[fx.Node, Any]) -> dict[fx.Node, fx.Node]:
        last: dict[fx.Node, fx.Node] = {}
        for node in self.gm.graph.nodes:
            held = list(node.all_input_nodes)
            affine, residual = sources.get(node, (None, None))
            if affine is not None:  # evaluated again after its weights changed
                held += [affine, *affine.all_input_nodes, *([residual] if residual else [])]
            last.update(dict.fromkeys(held, node))
        return last

    @staticmethod
    def _refitted(node: fx.Node, affine: fx.Node | None, residual: fx.Node | None) -> list[fx.Node]:
        """Nodes before a neuron whose values change when its affine module does."""
        if affine is None or affine is node:
            return []
        return [affine] if residual is None else [affine, node.args[0]]  # type: ignore[list-item]

    def _fit(
        self,
        node: fx.Node,
        affine: fx.Node | None,
        residual: fx.Node | None,
        fits: list[Callable[[Layer], None]],
    ) -> None:
        module: Any = self.gm.get_submodule(str(node.target))
        is_neuron = isinstance(module, BurstIFNode)
        current: Any = node.args[0] if is_neuron else node
        if not is_neuron and affine is None:
            return  # called more than once: no parameters of its own
        stale = self._refitted(node, affine, residual) if is_neuron else [node]
        evaluated: list[nn.Parameter] | None = None

        def evaluate() -> list[Tensor]:
            nonlocal evaluated
            parameters = [] if layer.affine is None else list(layer.affine.parameters())
            if evaluated is None or list(map(id, parameters)) != list(map(id, evaluated)):
                for source in stale:
                    self.snn[source] = self._evaluate(source, self.snn)
                evaluated = parameters
            return self.snn[current]

        layer = Layer(
            name=str(node.target),
            node=module if is_neuron else None,
            affine=None if affine is None else self.gm.get_submodule(str(affine.target)),
            evaluate=evaluate,
            inputs=[] if affine is None else self._means(affine.args[0]),
            wanted=[] if affine is None else self._wanted(current, residual),
            residuals=[0.0] * len(self.inputs) if residual is None else self._means(residual),
            targets=self.ann[node],
            time_steps=self.time_steps,
            device=self.device,
            bounded=isinstance(self.ann_modules.get(str(node.target)), nn.Hardtanh | BoundedActivation),
        )
        for fit in fits:
            fit(layer)
        evaluate()

    def _means(self, node: Any) -> list[Tensor]:
        pairs = zip(self.snn[node], self.inputs, strict=True)
        return [time_mean(value, len(x)) for value, x in pairs]

    def _wanted(self, current: Any, residual: fx.Node | None) -> list[Tensor]:
        if residual is None:
            return self.ann[current]
        return [z - s for z, s in zip(self.ann[current], self._means(residual), strict=True)]

    def _evaluate(self, node: fx.Node, values: dict[fx.Node, list[Any]]) -> list[Any]:
        return [self._evaluate_batch(node, values, i) for i in range(len(self.inputs))]

    def _evaluate_batch(self, node: fx.Node, values: dict[fx.Node, list[Any]], index: int) -> Any:
        args: Any
        if node.op == "placeholder":
            return self.inputs[index]
        args, kwargs = fx.node.map_arg(
            (node.args, node.kwargs), lambda n: _move(values[n][index], self.device)
        )
        if node.op == "call_module":
            module = self.gm.get_submodule(str(node.target))
            if values is self.ann:
                stand_in = nn.Identity() if isinstance(module, TemporalModule) else module
                module = self.ann_modules.get(str(node.target), stand_in)
            elif isinstance(module, TemporalModule):
                window = Window(self.time_steps, len(self.inputs[index]))
                return _move(run_temporal(module, args[0], window), "cpu")
            return _move(module(*args, **kwargs), "cpu")
        return _move(getattr(self.interpreter, node.op)(node.target, args, kwargs), "cpu")


def _move(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_move(v, device) for v in value)
    return value.to(device) if isinstance(value, Tensor) else value


def _affine_source(
    gm: fx.GraphModule, node: fx.Node, shapes: Mapping[Any, torch.Size]
) -> tuple[fx.Node | None, fx.Node | None]:
    """The affine call whose output (plus a residual) is a neuron's input alone, and the residual.

    A residual counts as one if it has the shape of the sum, and depends on the network's input. An
    affine call counts if it has one row a sample.
    """
    batch = next(iter(shapes.values()))[0]

    def single(n: fx.Node) -> bool:
        return call_sites(gm, n.target) == 1 and shapes.get(n, (0,))[0] == batch

    def owned(n: object) -> bool:
        return isinstance(n, fx.Node) and is_module(gm, n, _AFFINE) and len(n.users) == 1 and single(n)

    if is_module(gm, node, _AFFINE):
        return (node, None) if single(node) else (None, None)
    current = node.args[0]
    if owned(current):
        return current, None  # type: ignore[return-value]
    assert isinstance(current, fx.Node)
    if current.target in _SUMS and not current.kwargs and len(current.users) == 1:
        for one, other in (current.args, current.args[::-1]):
            alike = shapes.get(one) == shapes.get(other) == shapes[current]
            if owned(one) and other is not one and alike:
                return one, other  # type: ignore[return-value]
    return None, None
