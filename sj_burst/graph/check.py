"""Refuse what would convert to a silently wrong network, with every reason at once."""

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, fx, nn

from ..modules.encoding import CompensatedRateEncoder
from ..modules.pooling import MAX_POOLS
from ..modules.temporal import TemporalModule
from ..utils.copying import copied
from ..utils.inference import evaluate
from ..utils.inputs import call, join, map_floats, rows
from ..utils.outputs import map_tensors, tensors_of
from .evaluate import depends_on_input, evaluate_node, follows_values, has_tensor, record, run_with_types
from .operators import (
    ACTIVATIONS,
    AFFINE_FUNCTIONS,
    AFFINE_METHODS,
    AFFINE_MODULES,
    COMPOUND,
    DIVISIONS,
    FIRING,
    HELD_ARGUMENTS,
    PRODUCT_METHODS,
    PRODUCTS,
    SUMS_OF_PRODUCTS,
    WEIGHTED,
    WEIGHTED_CALLS,
)
from .trace import describe, is_module, place_of, problem_text, unsupported_message

__all__ = [
    "check_batch_independent",
    "check_equal",
    "check_equal_elsewhere",
    "check_supported",
    "find_readout",
    "in_double",
    "problem_of",
    "reached",
    "why_held",
]

REMEDIES = {
    "softmax": "leave it out; after the last neuron it can stay",
    "sigmoid": "leave it out, or drop the gate; after the last neuron it can stay",
    "silu": "retrain with ReLU, which is the function a spiking neuron computes",
    "gelu": "retrain with ReLU, which is the function a spiking neuron computes",
    "elu": "retrain with ReLU, which is the function a spiking neuron computes",
    "hardswish": "retrain with ReLU or ReLU6",
    "tanh": "retrain with ReLU",
    "norm": "use BatchNorm with running statistics, which is affine in eval mode",
    **dict.fromkeys(
        ("lstm", "gru", "rnn", "attention", "transformer"),
        "its gates or its attention are products of activations; leave it out of the network, and run "
        "it on the answer of the spiking network",
    ),
    "mul": "a product of two activations is not a rate; use a sum, or drop the gate",
    "dropout": "use nn.Dropout, which is dropped",
}
_DEFAULT_REMEDY = (
    "replace it by ReLU, max-pooling or an affine operation, or move it after the last neuron"
)
_RANDOM = "its result is random, which a read-out of the mean output cannot be; leave it out"
_RETRAIN = "retrain"
_STATISTICS = "train with them"
_LINEAR_UPSAMPLING = {"nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear"}


def check_supported(
    gm: fx.GraphModule,
    x: Any,
    known: Mapping[fx.Node, str] = MappingProxyType({}),
    direct: bool = True,
) -> None:
    """Raise one error that lists every node no spiking network can compute.

    Args:
        gm: a standardized graph.
        x: example input ``[N, ...]``.
        known: nodes that :func:`~sj_burst.graph.standardize.rewrite` has found wrong, and why.
        direct: the input is held as it is, so that anything may be computed before the first neuron.

    Raises:
        ValueError: names each node, its type, its source line and what to do instead.

    Example:
        >>> from sj_burst import standardize
        >>> x = torch.rand(2, 3)
        >>> check_supported(standardize(nn.Sequential(nn.SiLU(), nn.ReLU()), x), x)
        Traceback (most recent call last):
        ValueError: 1 operation(s) cannot be converted to spikes:
          - 0 (SiLU module): retrain with ReLU, which is the function a spiking neuron computes
    """
    values = record(gm, x)
    output = values[next(iter(reversed(gm.graph.nodes)))]
    if not tensors_of(output):
        raise ValueError(
            f"the network must return a tensor, or tuples, lists or dicts of tensors, it returned "
            f"{type(output).__name__}"
        )
    if problems := _problems(gm, values, known, direct)[0]:
        raise ValueError(unsupported_message(problems))


def find_readout(
    gm: fx.GraphModule, x: Any, direct: bool = True, potential: bool = False
) -> set[fx.Node]:
    """The nodes from the first function after the last neuron on that is no affine map.

    They need no spiking counterpart: applied to the mean output they are exact. An activation that has
    weights on the way to it or after it, counted from that function, is a hidden layer, not a read-out;
    so are recurrent layers and attention.

    Args:
        gm: a graph that :func:`check_supported` has passed.
        x: example input ``[N, ...]``.
        direct: as there.
        potential: an activation after another one, with no weights nor activations behind it, belongs to
            the read-out too.

    Example:
        >>> from sj_burst import standardize
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2), nn.Softmax(1), nn.Flatten())
        >>> x = torch.rand(2, 3)
        >>> sorted(node.target for node in find_readout(standardize(net, x), x))
        ['3', '4']
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU())
        >>> [node.target for node in find_readout(standardize(net, x), x, potential=True)]
        ['3']
    """
    found = _problems(gm, record(gm, x), {}, direct)[1]
    if potential:
        last = _last_activations(gm)
        found |= last | {n for n in reached(gm, last) if n.op != "output"}
    return found


def _last_activations(gm: fx.GraphModule) -> set[fx.Node]:
    """Activations after others, with no weights, activations nor max-pooling behind them."""
    firing = {n for n in gm.graph.nodes if is_module(gm, n, FIRING)}
    layers = firing | {n for n in gm.graph.nodes if _has_weights(gm, n)}
    activations = {n for n in firing if is_module(gm, n, ACTIVATIONS)}
    return (activations & reached(gm, activations)) - reached(gm, layers, backward=True)


def _problems(
    gm: fx.GraphModule, values: dict[fx.Node, Any], known: Mapping[fx.Node, str], direct: bool
) -> tuple[list[str], set[fx.Node]]:
    """What no spiking network can compute, with the reasons; and what may be left to a read-out."""
    depending: set[fx.Node] = set()  # on the values of the input, not its sizes alone
    for node in gm.graph.nodes:
        if node.op != "output" and follows_values(node, values, depending):
            depending.add(node)
    wrong = {
        n: p for n in gm.graph.nodes if (p := problem_of(gm, n, values, depending)) and n not in known
    }
    # What should be ReLUs counts as such, so that all of it is named at once.
    firing = {n for n in gm.graph.nodes if is_module(gm, n, FIRING)}
    asked = {n for n, problem in wrong.items() if problem.startswith(_RETRAIN)} | set(known)
    sources = firing if direct else firing | {n for n in gm.graph.nodes if n.op == "placeholder"}
    varying, after = reached(gm, sources), reached(gm, firing | asked)
    if direct:  # the others are held, and may multiply what varies
        changing = depending & (firing | asked | after)
        wrong = {
            n: p for n, p in wrong.items() if p != REMEDIES["mul"] or problem_of(gm, n, values, changing)
        }
    bent = {n for n in varying & wrong.keys() - firing if not wrong[n].endswith(_STATISTICS)}
    readout = {n for n in bent | reached(gm, bent) if n.op != "output"}
    refused = _hidden(gm, readout, firing | asked)
    for node in bent - refused:
        if _is_random(gm, node, values):
            wrong[node] = _RANDOM
            refused.add(node)
    problems = list(known.values())
    for node, problem in wrong.items():
        constant = node not in after and node not in asked and not problem.endswith(_STATISTICS)
        if constant and direct:
            continue  # it sees a constant input, of which each step may compute what it likes
        if node in refused or node not in readout:
            problems.append(problem_text(gm, node, problem))
    return problems, readout


def _hidden(gm: fx.GraphModule, readout: set[fx.Node], activations: set[fx.Node]) -> set[fx.Node]:
    """Layers of a read-out: compound ones, and activations with weights before or after them."""
    weighted = {n for n in readout if _has_weights(gm, n)}
    beside = reached(gm, weighted) | reached(gm, weighted, backward=True)
    hidden = activations & readout & beside
    hidden |= {n for n in readout if is_module(gm, n, COMPOUND)}
    return hidden | reached(gm, hidden, backward=True)


def _has_weights(gm: fx.GraphModule, node: fx.Node) -> bool:
    stored = any(n.op == "get_attr" for n in node.all_input_nodes)
    return is_module(gm, node, WEIGHTED) or (node.target in WEIGHTED_CALLS and stored)


@torch.no_grad()
def _is_random(gm: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    """Whether a node returns something else when it is asked again."""

    def cloned(n: fx.Node) -> Any:
        return map_tensors(torch.clone, values[n])

    with torch.random.fork_rng(devices=[]):
        first, second = (evaluate_node(gm, node, cloned) for _ in range(2))
    pairs = zip(tensors_of(first).values(), tensors_of(second).values(), strict=True)
    return not all(_close(a, b, 1e-3) for a, b in pairs)


def why_held(gm: fx.GraphModule, x: Any) -> str:
    """Why a converted graph would not be right for inputs that change from step to step; or nothing.

    Max-pooling before the first neuron is right: it passes on the maximum of the mean frame. Whatever
    else is not affine there acts on each frame, and the mean of what it returns is not what the ANN
    computes of the mean frame.

    Args:
        gm: a converted graph.
        x: a few inputs of one step.

    Returns:
        A text that names each node and its line, empty if there is none.
    """
    values, depending = record(gm, x), depends_on_input(gm)
    reset_net(gm)
    after: set[fx.Node] = set()
    problems = []
    for node in gm.graph.nodes:
        module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, CompensatedRateEncoder):
            return (
                "coding='compensated' adds what rate coding loses of an input that is held, and these "
                "change over time; convert with coding='direct' or 'rate'"
            )
        temporal = isinstance(module, TemporalModule)
        fires = temporal and not module.keeps_constant  # type: ignore[union-attr]
        if fires or after.intersection(node.all_input_nodes):
            after.add(node)
            # A factor that is held while the input is, and is no more.
            if not temporal and problem_of(gm, node, values, depending) == REMEDIES["mul"]:
                problems.append(problem_text(gm, node, REMEDIES["mul"]))
        elif isinstance(module, MAX_POOLS):
            problems.append(problem_text(gm, node, "use max_pool='lateral_inhibition'"))
        elif not temporal and (problem := problem_of(gm, node, values, depending)):
            problems.append(problem_text(gm, node, problem))
    if not problems:
        return ""
    return (
        "inputs that change over time need layers that are affine before the first neuron; apply the "
        f"following in the loader. {unsupported_message(problems)}"
    )


def reached(gm: fx.GraphModule, starts: set[fx.Node], backward: bool = False) -> set[fx.Node]:
    """Nodes after some others, or before them."""
    found: set[fx.Node] = set()
    for node in reversed(gm.graph.nodes) if backward else gm.graph.nodes:
        neighbours = node.users if backward else node.all_input_nodes
        if any(n in found or n in starts for n in neighbours):
            found.add(node)
    return found


def problem_of(
    gm: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any], varying: set[fx.Node]
) -> str | None:
    """What is wrong with one node, if it has to pass rates on; or None.

    Args:
        gm: a graph.
        node: of it.
        values: of this node and those before it.
        varying: nodes whose value is a rate.
    """
    if node not in varying:
        return None
    if node.op == "call_module":
        return _module_problem(gm.get_submodule(str(node.target))) or _shape_problem(gm, node, values)
    operands = [n for n in node.all_input_nodes if n in varying and isinstance(values[n], Tensor)]
    if node.op not in ("call_function", "call_method") or not has_tensor(values[node]):
        return None
    if not operands and not any(n in varying and has_tensor(values[n]) for n in node.all_input_nodes):
        return None  # of sizes alone
    if _rounds(node, operands, values):
        return "it rounds, which a rate does not pass; leave the rounding out"
    products = PRODUCTS if node.op == "call_function" else PRODUCT_METHODS
    if node.target in products:
        several = _occurrences((node.args, node.kwargs), operands) > 1
        divisor = node.target in DIVISIONS and (not node.args or node.args[0] not in operands)
        return REMEDIES["mul"] if several or divisor else None
    if node.target in SUMS_OF_PRODUCTS:
        factors = (node.args[1:], {k: v for k, v in node.kwargs.items() if k != "input"})
        return REMEDIES["mul"] if _occurrences(factors, operands) > 1 else None
    if node.target in HELD_ARGUMENTS:
        held = (node.args[HELD_ARGUMENTS[node.target] :], node.kwargs)
        return REMEDIES["mul"] if _occurrences(held, operands) else None
    if node.kwargs.get("reduce") == "multiply":  # scatter: several elements may meet in one place
        scattered = (node.args[1:], {k: v for k, v in node.kwargs.items() if k != "input"})
        return REMEDIES["mul"] if _occurrences(scattered, operands) else None
    if _is_structure(node.target):
        return None
    affine = AFFINE_FUNCTIONS if node.op == "call_function" else AFFINE_METHODS
    return None if node.target in affine else _remedy(describe(gm, node))


def _rounds(node: fx.Node, operands: list[fx.Node], values: dict[fx.Node, Any]) -> bool:
    """Whether a node makes integers of real numbers, in their type or by division."""
    value = values[node]
    casts = isinstance(value, Tensor) and not value.is_floating_point()
    casts = casts and not value.is_complex()
    real = any(values[n].is_floating_point() for n in operands)
    return node.kwargs.get("rounding_mode") is not None or (casts and real)


def _module_problem(module: nn.Module) -> str | None:
    if isinstance(module, nn.Sequential):
        return next(filter(None, map(_module_problem, module)), None)
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
        return f"it has no running statistics, so it mixes the samples of a batch; {_STATISTICS}"
    if isinstance(module, nn.Upsample) and module.mode not in _LINEAR_UPSAMPLING:
        return f"mode {module.mode!r} is not supported; use one of {sorted(_LINEAR_UPSAMPLING)}"
    allowed = (*AFFINE_MODULES, *ACTIVATIONS, *MAX_POOLS)
    return None if isinstance(module, allowed) else _remedy(type(module).__name__)


def _shape_problem(gm: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]) -> str | None:
    if is_module(gm, node, ACTIVATIONS) and values[node].dim() < 2:
        return "it acts on one number per sample; give it a channel dimension, as in x.unsqueeze(1)"
    return None


def _remedy(name: str) -> str:
    name = name.lower()
    return next((text for key, text in REMEDIES.items() if key in name), _DEFAULT_REMEDY)


def _occurrences(arguments: Any, operands: list[fx.Node]) -> int:
    """How often operands stand in arguments, in lists of them too, as in ``einsum(..., [x, x])``."""
    leaves: list[Any] = []
    fx.node.map_aggregate(arguments, leaves.append)
    return sum(leaf in operands for leaf in leaves if isinstance(leaf, fx.Node))


def _is_structure(target: object) -> bool:
    """Whether a call makes a named tuple."""
    return isinstance(target, type) and issubclass(target, tuple)


@torch.no_grad()
def check_batch_independent(gm: fx.GraphModule, x: Any) -> None:
    """Raise if an operator mixes the samples of a batch: time steps would mix with them.

    The graph runs on the batch, on other samples, and on both in one batch, in double precision. What
    enters an activation or max-pooling, what leaves it, and the output must have one row a sample,
    and the rows of the large batch must be those of the small ones.

    Args:
        gm: a standardized graph.
        x: example input ``[N, ...]``, N ≥ 2.

    Raises:
        ValueError: names the first operator that fails.

    Example:
        >>> from sj_burst import standardize
        >>> class Centre(nn.Module):
        ...     def forward(self, x):
        ...         return x - x.mean(0)
        >>> x = torch.rand(2, 3)
        >>> check_batch_independent(standardize(Centre(), x), x)
        Traceback (most recent call last):
        ValueError: mean (Tensor.mean) mixes the samples of a batch, which ...
    """
    gm, x = in_double(gm, x)
    others = _other_samples(gm, x)
    places = [n for n in gm.graph.nodes if n.op == "output" or is_module(gm, n, FIRING)]
    wanted = {n for place in places for n in (place, *place.all_input_nodes)}
    types: set[torch.dtype] = set()
    first, second = record(gm, x, wanted, types), record(gm, others, wanted)
    try:
        both = record(gm, join([x, others]), wanted)
    except RuntimeError as error:
        raise ValueError(
            "the network runs only at the batch size of its loader, but time steps are folded into "
            f"the batch; replace fixed batch sizes, as in view({rows(x)}, -1), by x.size(0): {error}"
        ) from error
    rounding = _rounding(types)
    for node in places:
        fires = node.op != "output"
        shapes = [list(t.shape) for t in tensors_of(first[node]).values()]
        more = [list(t.shape) for t in tensors_of(both[node]).values()]
        wrong = next((shape for shape in shapes if shape[:1] != [rows(x)]), None)
        if wrong is None and any(shape[:1] != [2 * rows(x)] for shape in more):
            wrong = shapes[0]  # by chance it is as long as the batch
        if wrong is not None:
            what = f"{node.target} ({describe(gm, node)})" if fires else "the network"
            raise ValueError(
                f"{what} returns {wrong} for a batch of {rows(x)}: time steps are "
                "folded into the batch, so activations, max-pooling and the output need one row a "
                "sample; pass crops or frames as samples of their own, and combine the answers"
            )
        read = [n for n in (*node.all_input_nodes, node) if isinstance(first[n], Tensor)]
        if not all(_are_rows(both[n], first[n], second[n], rounding) for n in read):
            culprit = _first_mixing(gm, x, others, rounding)
            problem = (
                "mixes the samples of a batch, which a folded time axis does not allow; make each "
                "sample's result depend on that sample alone"
            )
            raise ValueError(f"{place_of(gm, culprit)} {problem}")


def _other_samples(gm: fx.GraphModule, x: Any) -> Any:
    """Samples unlike those of ``x``, even if these are alike; their order, if none else will do."""
    rolled = map_floats(lambda t: t / 2, map_tensors(lambda t: t.flip(0).roll(1, -1), x))
    try:
        call(gm, map_tensors(torch.clone, rolled))
    except (RuntimeError, IndexError):  # columns of different kinds, categories among them
        return map_tensors(lambda t: t.flip(0), x)
    return rolled


def _first_mixing(gm: fx.GraphModule, x: Any, others: Any, rounding: float) -> fx.Node:
    """The first node whose value for two batches in one is not that of the batches."""
    first, second, both = (record(gm, batch) for batch in (x, others, join([x, others])))
    return next(
        n
        for n, value in first.items()
        if isinstance(value, Tensor) and not _are_rows(both[n], value, second[n], rounding)
    )


def _are_rows(both: Tensor, first: Tensor, second: Tensor, rounding: float) -> bool:
    """Whether a value of two batches in one is those of the batches, one after the other."""
    if both.dim() == 0 or both.shape == first.shape:  # no dimension belongs to the batch
        return _close(both, first, rounding)
    grown = [d for d in range(both.dim()) if both.shape[d] != first.shape[d]]
    if len(grown) != 1 or both.shape[grown[0]] != 2 * first.shape[grown[0]]:
        return False
    return _close(both, torch.cat([first, second], grown[0]), rounding)


def check_equal(gm: fx.GraphModule, model: nn.Module, x: Any, tolerance: float = 2e-5) -> None:
    """Raise if a graph does not compute what the network computes.

    Both run in double precision, where rounding cannot hide a difference, nor pass for one; or in
    their own, if they insist on it.

    Args:
        gm: a rewritten graph.
        model: the network it came from; a copy of it runs, in eval mode.
        x: example input ``[N, ...]``.
        tolerance: largest difference relative to the largest output; weights that a parametrization
            computes are rounded to the network's precision.

    Raises:
        ValueError: with the relative difference.

    Example:
        >>> from sj_burst import standardize
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        >>> check_equal(standardize(model, torch.rand(2, 3)), model, torch.rand(2, 3))
    """
    got, types = run_with_types(*in_double(gm, x))
    expected, exact = _answer_in_double(model, x)
    check_same(got, expected, max(tolerance, _rounding(types), 0.0 if exact else 1e-4))


def check_equal_elsewhere(gm: fx.GraphModule, model: nn.Module, x: Any) -> None:
    """As :func:`check_equal`, on inputs unlike ``x``: what rests in some samples acts in others.

    Inputs for which the network has no finite answer are left out.
    """
    real = any(t.is_floating_point() for t in tensors_of(x).values())
    for factor in (-1, 4) if real else ():
        other = map_floats(lambda t, factor=factor: factor * t, x)  # type: ignore[misc]
        try:
            expected, exact = _answer_in_double(model, other)
        except Exception:  # it asserts that its input is an image, say
            continue
        if all(tensor.isfinite().all() for tensor in tensors_of(expected).values()):
            got, types = run_with_types(*in_double(gm, other))
            check_same(got, expected, max(2e-5, _rounding(types), 0.0 if exact else 1e-4))


def _answer_in_double(model: nn.Module, x: Any) -> tuple[Any, bool]:
    """What a network answers in double precision, or else in its own; and whether it was in double."""
    precise = map_floats(Tensor.double, x)
    try:
        return evaluate(doubled(model), precise), True
    except (RuntimeError, TypeError):  # a type that is written down, or a device without float64
        return evaluate(model, x), False


def doubled(net: Any) -> Any:
    """A copy of a network in double precision; the network itself if it is so already.

    Example:
        >>> doubled(nn.Linear(2, 1)).weight.dtype
        torch.float64
    """
    tensors = (*net.parameters(), *net.buffers())
    if all(t.dtype == torch.float64 for t in tensors if t.is_floating_point()):
        return net
    return copied(net).double()


@torch.no_grad()
def in_double(gm: fx.GraphModule, x: Any) -> tuple[fx.GraphModule, Any]:
    """A copy of a graph in double precision, and its input; both as they are if it does not run so.

    A graph that is in double precision already is taken as it is.

    Example:
        >>> gm, x = in_double(fx.symbolic_trace(nn.Sequential(nn.Linear(2, 1))), torch.zeros(1, 2))
        >>> gm(x).dtype
        torch.float64
    """
    precise = map_floats(Tensor.double, x)
    try:
        wide = doubled(gm)
        if wide is not gm:
            call(wide, map_tensors(torch.clone, precise))
    except (RuntimeError, TypeError):  # a type that is written down, or a device without float64
        return gm, x
    return wide, precise


def _rounding(types: Iterable[torch.dtype]) -> float:
    """Relative difference that rounding may cause in the least precise of these types."""
    eps = max((torch.finfo(dtype).eps for dtype in types if dtype.is_floating_point), default=0.0)
    return 1e-9 if eps < 1e-12 else max(1e-4, 16 * eps)


def check_same(got: Any, expected: Any, tolerance: float = 1e-4) -> None:
    """Raise unless two outputs of any structure are the same but for ``tolerance``.

    Raises:
        ValueError: with the relative difference.
    """
    for a, b in zip(tensors_of(got).values(), tensors_of(expected).values(), strict=True):
        _check_same(a, b.to(a.dtype) if a.is_floating_point() else b, tolerance)


def _check_same(got: Tensor, expected: Tensor, rounding: float) -> None:
    if not expected.isfinite().all():
        raise ValueError("the network's output has NaN or infinite values; check weights and input")
    if expected.shape != got.shape or not _close(got, expected, rounding):
        difference = "shape" if expected.shape != got.shape else f"{_difference(got, expected):.2g}"
        raise ValueError(
            f"the traced graph differs from the network (relative difference: {difference}); usual "
            "causes are an in-place operation on a tensor that is read again (write x = x + y), and a "
            "hook that changes a value (move it into forward)"
        )


def _difference(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest finite value; infinities may be equal, too."""
    same = (a == b) | (a.isnan() & b.isnan())
    largest = torch.where(b.isfinite(), b, 0.0).abs().max().clamp_min(1e-12)
    return (torch.where(same, 0.0, (a - b).abs()).nan_to_num(torch.inf).max() / largest).item()


def _close(a: Tensor, b: Tensor, rounding: float) -> bool:
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    if a.numel() == 0:
        return True
    gap, largest = (a - b).abs().max().item(), b.abs().max().item()
    if math.isfinite(gap) and math.isfinite(largest):  # in fewer passes
        return gap <= rounding * max(largest, 1e-12)
    return _difference(a, b) <= rounding
