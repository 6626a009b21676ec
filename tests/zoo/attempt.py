"""Convert a network of the zoo, and say how it went."""

import re
import time
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

import sj_burst
from sj_burst.utils.outputs import map_tensors

from .entry import Entry
from .oracle import inquire
from .ordinary import make_ordinary

__all__ = ["COUNTED", "Result", "attempt", "convert"]

MANY = 2**20  # levels, in the limit of which the networks have to agree
MOST = 2**24
RIGHT = 0.01  # the error that they have to reach
COUNTED = ("converts", "refused wrongly", "converts wrongly")  # of what is convertible


@dataclass
class Result:
    """One row of the table.

    ``verdict`` is one of: converts; converts wrongly (with a million levels the error is not below 1 %,
    nor with sixteen million in float64);
    refused rightly (the oracle or the author has a reason); refused wrongly (neither has); does not run
    (as an ordinary network); timed out; too large (for the memory that it was given).
    """

    library: str
    network: str
    verdict: str = ""
    reason: str = ""
    error_16: float | str = ""
    error_256: float | str = ""
    error_many: float | str = ""
    error_in_steps: float | str = ""  # the same at T = 4
    seconds: float = 0.0

    def row(self) -> dict[str, Any]:
        """For a CSV."""
        return {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in asdict(self).items()}


def attempt(entry: Entry) -> Result:
    """Make, convert and compare."""
    start = time.time()
    result = Result(entry.library, entry.name)
    torch.manual_seed(0)
    try:
        x = entry.samples(4)
        net = make_ordinary(entry.make(), entry.samples(8))
        finding = inquire(net, x)
    except Exception as error:
        large = _is_too_large(error)
        result.verdict = "too large" if large else "does not run"
        result.reason = _TOO_LARGE if large else _short(error)
        return result
    try:
        _convert_and_compare(result, net, x, entry.large)
        if finding.unknown:
            result.reason = f"unknown to the oracle: {', '.join(dict.fromkeys(finding.unknown))}"
    except Exception as error:
        why = entry.refused_for or finding.verdict
        large = not why and _is_too_large(error)
        result.verdict = "refused rightly" if why else "too large" if large else "refused wrongly"
        result.reason = why or (_TOO_LARGE if large else _short(error))
    result.seconds = time.time() - start
    return result


def convert(net: Any, x: Any, levels: int, threshold: str = "mse") -> Any:
    """A network for one step of so many levels, fitted on ``x``."""
    options = {"calibration": "none", "progress": False}
    loader = [(x,)]  # without a target; several inputs are a tuple
    return sj_burst.convert(net, loader, max_spikes=levels, time_steps=1, threshold=threshold, **options)


@torch.no_grad()
def _convert_and_compare(result: Result, net: Any, x: Any, large: bool) -> None:
    part, wanted = _some(net, x)
    snn = convert(net, x, 1, "max")
    for levels in (16, 256):
        if large:
            _set_levels(snn, levels)
            got = snn.answer(part, 1)
        else:
            got = convert(net, x, levels).answer(part, 1)
        setattr(result, f"error_{levels}", difference(got, wanted))
    right = _is_right(result, snn, part, wanted, MANY)
    if not right:  # it may make much of small errors: with more levels, and exactly, they vanish
        net, x = net.double(), map_tensors(lambda t: t.double() if t.is_floating_point() else t, x)
        part, wanted = _some(net, x)
        right = _is_right(result, convert(net, x, 1, "max"), part, wanted, MOST)
        result.reason = "in float64, with 2^24 levels"
    result.verdict = "converts" if right else "converts wrongly"


def _is_right(result: Result, snn: Any, part: Any, wanted: Any, levels: int) -> bool:
    """Whether the error is small with so many levels."""
    _set_levels(snn, levels)
    result.error_many = difference(snn.answer(part, 1), wanted)
    result.error_in_steps = difference(snn.answer(part, 4), wanted)
    return result.error_many <= RIGHT and result.error_in_steps <= RIGHT


def _set_levels(snn: Any, levels: int) -> None:
    """So many levels up to the maximum that Γ thresholds reach now."""
    for neuron in snn.neurons().values():
        finer = levels / neuron.max_spikes
        neuron.max_spikes = levels
        neuron.threshold /= finer
        neuron.v_init /= finer


def _some(net: Any, x: Any) -> tuple[Any, Any]:
    """Inputs at another batch size than that of the conversion, and the network's answer."""
    some = [2, 0, 3]
    part = tuple(t[some] for t in x) if isinstance(x, tuple) else x[some]
    return part, net(*part) if isinstance(part, tuple) else net(part)


def difference(got: Any, wanted: Any) -> float:
    """‖answer − ANN‖ / ‖ANN − its mean over the batch‖, of the worst output."""
    got, wanted = list(_tensors(got)), list(_tensors(wanted))
    assert len(got) == len(wanted)
    pairs = zip(got, wanted, strict=True)
    return max(_relative(a, b) for a, b in pairs if b.is_floating_point())


def _relative(got: Tensor, wanted: Tensor) -> float:
    assert got.shape == wanted.shape
    spread = (wanted - wanted.mean(0)).norm().clamp_min(0.01 * wanted.norm()).clamp_min(1e-12)
    return ((got - wanted).norm() / spread).item()


def _tensors(value: Any) -> Any:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif is_dataclass(value):
        for part in fields(value):
            yield from _tensors(getattr(value, part.name))


_TOO_LARGE = "more memory than it was given"


def _is_too_large(error: Exception) -> bool:
    """Whether a network needs more memory than there is."""
    return isinstance(error, MemoryError) or "allocate memory" in f"{error} {error.__cause__}"


def _short(error: Exception) -> str:
    text = str(error).partition("While executing")[0]  # then come places on this machine
    return re.sub(r"\s+", " ", f"{type(error).__name__}: {text}").strip()[:1500]
