"""Inputs in every shape and layout, and the comparison with functional.py that all backends share."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sj_burst import functional
from sj_burst.backends.result import BurstResult


@dataclass
class Case:
    """Arguments of a multi-step burst neuron."""

    z_seq: Tensor
    v: Tensor
    threshold: Tensor
    max_spikes: float
    options: dict[str, Any] = field(default_factory=dict)

    def args(self) -> tuple[Any, ...]:
        return self.z_seq, self.v, self.threshold, self.max_spikes

    def to(self, device: str) -> "Case":
        options = {k: None if x is None else x.to(device) for k, x in self.options.items()}
        tensors = (t.to(device) for t in (self.z_seq, self.v, self.threshold))
        return Case(*tensors, self.max_spikes, options)


def channels_last(x_seq: Tensor) -> Tensor:
    """``[T, N, C, H, W]`` as a channels-last convolution leaves it."""
    folded = x_seq.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    return folded.unflatten(0, x_seq.shape[:2])


def make_input(steps: int, shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> Tensor:
    z_seq = torch.randn(steps, *shape, dtype=torch.float64).to(dtype)
    if layout == "constant":
        return z_seq[:1].expand(steps, *shape)
    if layout == "channels_last" and len(shape) == 4:
        return channels_last(z_seq)
    if layout == "holes":
        return torch.stack([z_seq, z_seq], dim=-1)[..., 0]
    if layout == "every second step":
        return z_seq.repeat_interleave(2, 0)[::2]
    return z_seq


LAYOUTS = ("contiguous", "channels_last", "constant", "holes", "every second step")
SHAPES = ((1, 1), (3, 7), (2, 3, 5, 7), (2, 4, 4, 8))


def burst_cases(dtype: torch.dtype, signed: bool, shifted: bool, leaky: bool = False) -> Iterator[Case]:
    """Every shape with every layout; parameters per layer, channel, neuron and sample in turn."""
    kinds = itertools.cycle(["layer", "channel", "neuron", "sample"])
    for shape, layout, steps in itertools.product(SHAPES, LAYOUTS, (1, 5)):
        of = {
            "layer": (),
            "channel": (shape[1], *[1] * (len(shape) - 2)),
            "neuron": shape[1:],
            "sample": shape,
        }
        state = torch.float64 if dtype == torch.float64 else torch.float32
        threshold = torch.rand(of[next(kinds)]).to(state) * 0.6 + 0.2
        v = torch.rand(of[next(kinds)]).to(state).expand(shape)
        shift = torch.rand(of[next(kinds)]).to(state) / 5 if shifted else None
        sent = torch.randint(-2 if leaky else 0, 2, shape).to(state) if signed or leaky else None
        z_seq = make_input(steps, shape, layout, dtype)
        options = {"shift": shift, "sent": sent}
        if leaky:
            options["negative_slope"] = torch.randn(of[next(kinds)]).to(state)
        yield Case(z_seq, v, threshold, 3, options)


def expected(case: Case) -> tuple[Tensor, Tensor, Tensor | None]:
    """functional.py, at the precision of the state."""
    z_seq = case.z_seq.to(case.v.dtype)
    return functional.burst_multi_step(z_seq, *case.args()[1:], **case.options)


def bursts_of(case: Case, y_seq: Tensor) -> Tensor:
    """Spikes of every step and neuron; those of a leaky neuron by the soft reset, not by its output."""
    if "negative_slope" not in case.options:
        return (y_seq / case.threshold).round().abs()
    totals = [case.options["sent"]]
    for steps in range(1, len(case.z_seq) + 1):
        part = Case(case.z_seq[:steps], *case.args()[1:], case.options)
        totals.append(expected(part)[2])
    return torch.stack(totals).diff(dim=0).abs()


def bits_of(bursts: Tensor) -> Tensor:
    """How many ones every number has in binary."""
    ones = [bin(int(n)).count("1") for n in bursts.flatten().tolist()]
    return torch.tensor(ones, dtype=bursts.dtype).view_as(bursts)


def spikes_of(case: Case, y_seq: Tensor) -> Tensor:
    return bursts_of(case, y_seq).flatten(1).sum(1).long()


def assert_burst_equal(case: Case, got: BurstResult) -> None:
    """``got`` is what functional.py says, bit for bit."""
    y_seq, v, sent = expected(case)
    for name, wanted in (("y_seq", y_seq.to(case.z_seq.dtype)), ("v", v), ("sent", sent)):
        value = getattr(got, name)
        assert (value is None) == (wanted is None), name
        if value is not None:
            value = value.cpu()
            assert value.shape == wanted.shape and value.dtype == wanted.dtype, (name, value.shape)
            largest = (value - wanted).abs().max()
            assert torch.equal(value, wanted), f"{name} of {tuple(case.z_seq.shape)}: {largest}"
    if got.counts is not None:
        assert torch.equal(got.counts.per_step.cpu().long(), spikes_of(case, y_seq)), "spikes per step"
        bursts = bursts_of(case, y_seq).double()
        events = torch.stack([bursts, bits_of(bursts), (bursts > 0).double()]).sum((1, 2))
        assert torch.equal(got.counts.per_neuron.cpu(), events), "events per neuron"
        if got.counts.net is not None:
            net = (y_seq / case.threshold).round().flatten(1).sum(1)
            assert torch.equal(got.counts.net.cpu().long(), net.long()), "net spikes per step"


POOLS: list[nn.Module] = [
    nn.MaxPool2d(2),
    nn.MaxPool2d(3, 2, 1),
    nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    nn.MaxPool2d(2, 3),
    nn.MaxPool2d((2, 3), (3, 1), (1, 0)),
    nn.MaxPool2d(3, 1, 1, dilation=2),
    nn.MaxPool2d(2, 2, 1, dilation=(1, 3), ceil_mode=True),
    nn.MaxPool2d(1, 2),
    nn.MaxPool1d(3, 2, 1),
    nn.MaxPool1d(2, 3, dilation=2, ceil_mode=True),
]


def pool_shape(pool: nn.Module) -> tuple[int, ...]:
    return (2, 3, 9, 11) if isinstance(pool, nn.MaxPool2d) else (2, 3, 11)


def pool_states(pool: nn.Module, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    total = torch.rand(pool_shape(pool)).to(dtype)
    return total, pool(total)
