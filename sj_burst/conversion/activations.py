"""What the nodes of a network return for the calibration images, recorded in little memory."""

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from ..functional import per_channel
from ..graph.evaluate import evaluate_node
from ..graph.repeat import RepeatOverTime
from ..graph.trace import is_module
from ..modules.neuron import BurstIFNode
from ..modules.pooling import MAX_POOLS, GatedPool, LIPool, MaxOver
from ..modules.temporal import TemporalModule, TimeFold, run_temporal, time_mean
from ..utils.inputs import rows
from ..utils.layout import move
from ..utils.spill import Kept, Spill

__all__ = ["Activations", "Batches", "Record", "recorded_nodes"]


class Batches(Sequence[Any]):
    """One value for each batch, made whenever it is asked for.

    Example:
        >>> squares = Batches(3, lambda i: i * i)
        >>> list(squares), squares[:2]
        ([0, 1, 4], [0, 1])
    """

    def __init__(self, count: int, value: Callable[[int], Any]) -> None:
        self._count, self._value = count, value

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._value(i) for i in range(self._count)[index]]
        return self._value(range(self._count)[index])


class _Quantum(NamedTuple):
    """What the values of a node are whole multiples of, and the type that holds the multiples."""

    size: Tensor
    dtype: torch.dtype


class Record(Sequence[Any]):
    """A value for each batch, kept until :meth:`free`; spikes as their counts."""

    def __init__(self, spill: Spill) -> None:
        self._spill = spill
        self._parts: list[tuple[Any, _Quantum | None, torch.dtype | None]] = []

    def append(self, value: Any, quantum: _Quantum | None = None) -> None:
        """Add the value of the next batch."""
        dtype = None
        if quantum is not None:
            dtype, size = value.dtype, per_channel(quantum.size, value.dim())
            value = (value / size).round_().to(quantum.dtype)
        self._parts.append((_keep(move(value, "cpu"), self._spill), quantum, dtype))

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        kept, quantum, dtype = self._parts[index]
        value = _get(kept)
        if quantum is None:
            return value
        return value.to(dtype).mul_(per_channel(quantum.size, value.dim()).to(value.device))

    def free(self) -> None:
        """Let all values go."""
        for kept, *_ in self._parts:
            _free(kept)
        self._parts = []


def _keep(value: Any, spill: Spill) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_keep(v, spill) for v in value)
    return spill.keep(value) if isinstance(value, Tensor) else value


def _get(kept: Any) -> Any:
    if isinstance(kept, tuple | list):
        return type(kept)(map(_get, kept))
    return kept.get() if isinstance(kept, Kept) else kept


def _free(kept: Any) -> None:
    for one in kept if isinstance(kept, tuple | list) else [kept]:
        if isinstance(one, tuple | list):
            _free(one)
        elif isinstance(one, Kept):
            one.free()


class Activations:
    """What the nodes of one network, ANN or SNN, return for every batch, as long as it is needed.

    Args:
        gm: the converted graph.
        inputs: calibration batches ``[N, ...]``, or tuples or dicts of several.
        time_steps: T.
        device: where the graph runs.
        spill: keeps what is recorded.
        recorded: nodes whose values are recorded, with the number of batches that are; those of others
            are computed whenever they are read.
        stand_ins: called in place of modules of the graph, by name.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        inputs: list[Any],
        time_steps: int,
        device: torch.device,
        spill: Spill,
        recorded: Mapping[fx.Node, int],
        stand_ins: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.gm, self.inputs, self.device, self.spill = gm, inputs, device, spill
        self.folds = [TimeFold(time_steps, rows(x)) for x in inputs]
        self.stand_ins = stand_ins or {}
        self._recorded = recorded
        self._records: dict[fx.Node, Record] = {}
        self._quanta: dict[fx.Node, _Quantum] = {}

    def first(self, count: int, node: Any) -> Sequence[Any]:
        """The values of a node for the first batches, on the CPU where recorded."""
        return Batches(count, lambda i: self._read(node, i))

    def free(self, node: fx.Node) -> None:
        """Forget what a node returned."""
        self._records.pop(node, Record(self.spill)).free()
        self._quanta.pop(node, None)

    def module(self, node: fx.Node) -> Any:
        """The module that a node calls; ``None`` if it calls none."""
        if node.op != "call_module":
            return None
        name = str(node.target)
        return self.stand_ins[name] if name in self.stand_ins else self.gm.get_submodule(name)

    def evaluate(self, node: fx.Node) -> None:
        """Record what a node returns, ``[T·N, ...]``, or ``[N, ...]`` if constant, if it is recorded."""
        if node not in self._recorded:
            return
        self.free(node)
        quantum = self._quantum(node)
        if quantum is not None:
            self._quanta[node] = quantum
        record = Record(self.spill)
        self._records[node] = record
        for i in range(self._recorded[node]):
            record.append(self._compute(node, i), quantum)

    def means(self, count: int, node: Any) -> tuple[Sequence[Tensor], Record]:
        """Means over T ``[N, ...]`` of what a node returned, and what has to be freed after use."""
        record, values = Record(self.spill), self.first(count, node)
        for i, fold in enumerate(self.folds[:count]):
            value = values[i]
            if len(value) == fold.batch:  # constant, and its own mean
                return values, record
            record.append(time_mean(value, fold))
        return record, record

    def _read(self, node: fx.Node, batch: int) -> Any:
        record = self._records.get(node, ())
        return record[batch] if batch < len(record) else self._compute(node, batch)

    def _compute(self, node: fx.Node, batch: int) -> Any:
        def value_of(n: fx.Node) -> Any:
            return move(self._read(n, batch), self.device)

        module = self.module(node)
        if isinstance(module, TemporalModule):
            return run_temporal(module, value_of(node.args[0]), self.folds[batch])  # type: ignore[arg-type]
        if module is not None and node.target in self.stand_ins:
            return module(value_of(node.args[0]))  # type: ignore[arg-type]
        return evaluate_node(self.gm, node, value_of, self.inputs[batch])

    def _quantum(self, node: fx.Node) -> _Quantum | None:
        """θ of a neuron that sends multiples of it, and of the max-pooling that passes them on."""
        module = self.module(node)
        if isinstance(module, BurstIFNode) and module.negative_slope is None:
            dtype = _count_type(module.max_spikes)
            return None if dtype is None else _Quantum(module.threshold.clone(), dtype)
        pool = module.pool if isinstance(module, LIPool | GatedPool) else module
        if not isinstance(pool, MAX_POOLS) or isinstance(pool, MaxOver):  # over channels, say
            return None
        quantum = self._quanta.get(node.args[0])  # type: ignore[arg-type]
        return quantum if quantum is not None and quantum.size.dim() < 2 else None


def _count_type(max_spikes: float) -> torch.dtype | None:
    """The smallest type that holds from −Γ to Γ."""
    for dtype in (torch.int8, torch.int16):
        if max_spikes <= torch.iinfo(dtype).max:
            return dtype
    return None


def recorded_nodes(gm: fx.GraphModule, read: Container[fx.Node]) -> set[fx.Node]:
    """The nodes whose values are worth recording: read more than once, or made by many steps.

    A value with one reader is made when that one is evaluated; a constant is repeated over time then.

    Args:
        gm: the converted graph.
        read: nodes that are read by others than their users.
    """

    def recorded(node: fx.Node) -> bool:
        if node.op in ("placeholder", "get_attr", "output") or is_module(gm, node, RepeatOverTime):
            return False
        fires = is_module(gm, node, TemporalModule)
        held = any(is_module(gm, user, RepeatOverTime) for user in node.users)
        return fires or held or len(node.users) > 1 or node in read

    return {node for node in gm.graph.nodes if recorded(node)}
