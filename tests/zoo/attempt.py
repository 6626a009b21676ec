"""Convert a network of the zoo, and say how it went."""

import re
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import sj_burst

from .entry import Entry
from .oracle import inquire
from .ordinary import make_ordinary

__all__ = ["COUNTED", "LEVELS", "Result", "attempt", "convert"]

LEVELS = (16, 256, 4096, 65536)  # Γ at T = 1: as many levels beside zero; the last ones only if needed
RIGHT = 0.01  # the error that some number of levels has to reach
COUNTED = ("converts", "refused wrongly", "converts wrongly")  # of what is convertible


@dataclass
class Result:
    """One row of the table.

    ``verdict`` is one of: converts; converts wrongly (no number of levels brings the error down to 1 %);
    refused rightly (the oracle or the author has a reason); refused wrongly (neither has); read-out
    (refused for what follows the last neuron); several inputs; does not run (as an ordinary network);
    timed out.
    """

    library: str
    network: str
    verdict: str = ""
    reason: str = ""
    error_16: float | str = ""
    error_256: float | str = ""
    error_4096: float | str = ""
    error_65536: float | str = ""
    error_in_steps: float | str = ""  # T = 4 at the largest Γ tried
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
        result.verdict, result.reason = "does not run", _short(error)
        return result
    try:
        _convert_and_compare(result, net, x)
        if finding.unknown:
            result.reason = f"unknown to the oracle: {', '.join(dict.fromkeys(finding.unknown))}"
    except Exception as error:
        why = entry.refused_for or finding.verdict
        if why:
            result.verdict, result.reason = "refused rightly", why
        elif isinstance(x, tuple):
            result.verdict, result.reason = "several inputs", _short(error)
        else:
            read_out = bool(finding.read_out)
            result.verdict = "read-out" if read_out else "refused wrongly"
            result.reason = ", ".join(dict.fromkeys(finding.read_out)) if read_out else _short(error)
    result.seconds = time.time() - start
    return result


def convert(net: Any, x: Any, levels: int) -> Any:
    """One step of so many levels, fitted on ``x``."""
    return sj_burst.convert(
        net, [x], max_spikes=levels, time_steps=1, threshold="mse", calibration="none", progress=False
    )


@torch.no_grad()
def _convert_and_compare(result: Result, net: Any, x: Any) -> None:
    some = [2, 0, 3]  # at another batch size than that of the conversion
    part = tuple(t[some] for t in x) if isinstance(x, tuple) else x[some]
    wanted = net(*part) if isinstance(part, tuple) else net(part)
    error = float("inf")
    for levels in LEVELS:
        if levels > LEVELS[1] and error <= RIGHT:
            break
        snn = convert(net, x, levels)
        error = difference(snn.run(part, 1), wanted)
        setattr(result, f"error_{levels}", error)
    result.error_in_steps = difference(snn.run(part, 4), wanted)
    right = error <= RIGHT and result.error_in_steps <= 2 * RIGHT
    result.verdict = "converts" if right else "converts wrongly"


def difference(got: Any, wanted: Any) -> float:
    """‖mean over time − ANN‖ / ‖ANN − its mean over the batch‖, of the worst output."""
    got, wanted = list(_tensors(got)), list(_tensors(wanted))
    assert len(got) == len(wanted)
    pairs = [(a.mean(0), b) for a, b in zip(got, wanted, strict=True) if b.is_floating_point()]
    return max(_relative(a, b) for a, b in pairs)


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


def _short(error: Exception) -> str:
    return re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")[:1500]
