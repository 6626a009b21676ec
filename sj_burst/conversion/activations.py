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
from ..modules.temporal import TemporalModule, TimeFold, run_temporal, time_mean, time_sum
from ..utils.inputs import join, rows
from ..utils.layout import move
from ..utils.samples import join_samples, some_samples
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


class Record:
    """Values by ranges of batches, kept until :meth:`free`; spikes as their counts.

    Args:
        spill: keeps them.
        quantum: of spikes.
    """

    def __init__(self, spill: Spill, quantum: _Quantum | None = None) -> None:
        self._spill, self._quantum = spill, quantum
        self._dtype: torch.dtype | None = None
        self._kept: dict[range, Any] = {}

    def put(self, part: range, value: Any) -> None:
        """Keep the value of some batches."""
        if self._quantum is not None:
            self._dtype, size = value.dtype, per_channel(self._quantum.size, value.dim())
            value = (value / size).round_().to(self._quantum.dtype)
        self._kept[part] = _keep(move(value, "cpu"), self._spill)

    def __contains__(self, part: object) -> bool:
        return part in self._kept

    def counts(self, part: range) -> Any:
        """What is kept of some batches: spikes as their counts."""
        return _get(self._kept[part])

    def values(self, counts: Any) -> Any:
        """What :meth:`counts` stand for."""
        if self._quantum is None:
            return counts
        size = per_channel(self._quantum.size, counts.dim()).to(counts.device)
        return counts.to(self._dtype).mul_(size)

    def free(self) -> None:
        """Let all values go."""
        for kept in self._kept.values():
            _free(kept)
        self._kept = {}


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
        at_once: of how many batches the values of each node are computed at once, a power of two; more
            than one only if what is recorded are tensors with a row a sample, or one a step and sample.
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
        at_once: Mapping[fx.Node, int],
        stand_ins: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.gm, self.device, self.spill, self.time_steps = gm, device, spill, time_steps
        self.stand_ins = stand_ins or {}
        self._inputs, self._sizes = inputs, [rows(x) for x in inputs]
        self._recorded, self._at_once = recorded, at_once
        self._records: dict[fx.Node, Record] = {}
        self._quanta: dict[fx.Node, _Quantum] = {}

    def parts(self, node: fx.Node, count: int) -> list[range]:
        """The batches that a node is computed for at once, until they are so many."""
        return self._parts(node, range(count))

    def values(self, parts: Sequence[range], node: Any) -> Sequence[Any]:
        """The values of a node for some batches, on the CPU where recorded."""
        return Batches(len(parts), lambda i: self._read(node, parts[i]))

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
        record = self._records[node] = Record(self.spill, quantum)
        for part in self.parts(node, self._recorded[node]):
            record.put(part, self._compute(node, part))

    def means(self, parts: Sequence[range], node: Any) -> tuple[Sequence[Tensor], Record]:
        """Means over T ``[N, ...]`` of what a node returned, and what has to be freed after use."""
        record = Record(self.spill)
        for part in parts:
            mean = self._mean(node, part)
            if mean is None:  # constant, and its own mean
                return self.values(parts, node), record
            record.put(part, mean)
        return Batches(len(parts), lambda i: record.counts(parts[i])), record

    def _mean(self, node: fx.Node, part: range) -> Tensor | None:
        """Mean over T, or ``None`` of a constant; spikes are added up before they are weighted."""
        record, fold = self._held(node, part), self._fold(part)
        if record is None:
            value = self._compute(node, part)
            return None if len(value) == fold.batch else time_mean(value, fold)
        counts = self._counts(record, node, part)
        if len(counts) == fold.batch:
            return None
        return record.values(time_sum(counts, fold)).div_(fold.steps)

    def _parts(self, node: fx.Node, batches: range) -> list[range]:
        """The parts of a node's record that hold some batches."""
        size, count = self._at_once[node], len(self._sizes)
        first = batches.start - batches.start % size
        return [range(i, min(i + size, count)) for i in range(first, batches.stop, size)]

    def _fold(self, part: range) -> TimeFold:
        return TimeFold(self.time_steps, self._samples(part))

    def _samples(self, part: range) -> int:
        return sum(self._sizes[part.start : part.stop])

    def _read(self, node: fx.Node, part: range) -> Any:
        record = self._held(node, part)
        if record is None:
            return self._compute(node, part)
        return record.values(self._counts(record, node, part))

    def _held(self, node: fx.Node, part: range) -> Record | None:
        """The record of a node, if it has all of some batches."""
        record = self._records.get(node)
        return (
            record if record is not None and all(p in record for p in self._parts(node, part)) else None
        )

    def _counts(self, record: Record, node: fx.Node, part: range) -> Any:
        """What is recorded of some batches, in smaller parts or in one that is larger."""
        own = self._parts(node, part)
        if own == [part]:
            return record.counts(part)
        held = join_samples([record.counts(p) for p in own], [self._samples(p) for p in own])
        before = self._samples(range(own[0].start, part.start))
        wanted = range(before, before + self._samples(part))
        samples = sum(self._samples(p) for p in own)
        return held if len(wanted) == samples else some_samples(held, samples, wanted)

    def _compute(self, node: fx.Node, part: range) -> Any:
        def value_of(n: fx.Node) -> Any:
            return move(self._read(n, part), self.device)

        module = self.module(node)
        if isinstance(module, TemporalModule):
            return run_temporal(module, value_of(node.args[0]), self._fold(part))  # type: ignore[arg-type]
        if module is not None and node.target in self.stand_ins:
            return module(value_of(node.args[0]))  # type: ignore[arg-type]
        inputs = self._inputs[part.start : part.stop] if node.op == "placeholder" else [None]
        return evaluate_node(self.gm, node, value_of, inputs[0] if len(inputs) == 1 else join(inputs))

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
