"""The arithmetic of burst neurons and lateral-inhibition pooling, as pure functions on explicit state.

Every backend is tested against these functions. Notation: input current z, membrane potential v,
threshold θ, most spikes per step Γ, spike count n, weighted output y = θ·n.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "burst_multi_step",
    "burst_step",
    "count_step",
    "gated_pool_step",
    "li_pool_multi_step",
    "li_pool_step",
    "needs_grad",
    "per_channel",
]

Surrogate = Callable[[Tensor], Tensor]
Pool = Callable[[Tensor], Tensor]
IndexPool = Callable[[Tensor], tuple[Tensor, Tensor]]


def per_channel(value: Tensor, dim: int) -> Tensor:
    """View a parameter so that it broadcasts over a state of ``dim`` dimensions ``[N, C, ...]``.

    A one-dimensional ``value`` belongs to the channels (dimension 1); scalars and per-neuron values
    (shape of one sample) broadcast as they are.

    Args:
        value: scalar, ``[C]``, or any shape that broadcasts to one sample.
        dim: number of dimensions of the state, batch included.

    Example:
        >>> per_channel(torch.ones(3), dim=4).shape
        torch.Size([3, 1, 1])
    """
    return value.view(-1, *[1] * (dim - 2)) if value.dim() == 1 and dim > 2 else value


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd has to see what is done with these tensors.

    Args:
        *tensors: any; ``None`` needs no gradient.

    Example:
        >>> needs_grad(torch.ones(1), None), needs_grad(torch.ones(1, requires_grad=True))
        (False, True)
    """
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _count(
    level: Tensor, max_spikes: float, signed: bool, sent: Tensor | None, surrogate: Surrogate | None
) -> Tensor:
    """Spike count for ``level`` = v/θ, of ``sent`` at most; differentiable when a surrogate is given."""
    lowest = -max_spikes if signed else 0.0
    if surrogate is None:
        count = level.floor().clamp(lowest, max_spikes)
    else:
        # floor is a staircase: one Heaviside, hence one surrogate, for each of its steps.
        count = torch.full_like(level, lowest)
        for step in range(int(lowest) + 1, int(max_spikes) + 1):
            count = count + surrogate(level - step)
        count = torch.where(level.isnan(), level, count)  # of which the Heaviside function is zero
    # Not torch.maximum, which would halve the gradient of every silent neuron (count = sent = 0).
    return count if sent is None else torch.where(count < -sent, -sent, count)


def _leaky_output(
    count: Tensor, before: Tensor, after: Tensor, threshold: Tensor, below: Tensor
) -> Tensor:
    """f(after) − f(before), of which ``count`` is the difference; a unit below zero weighs ``below``.

    Whole spikes are split before they are weighed: differences of large totals would round.
    """
    above = after.clamp_min(0) - before.clamp_min(0)
    return threshold * above + below * (count - above)


def burst_step(
    z: Tensor,
    v: Tensor,
    threshold: Tensor,
    max_spikes: float = 1,
    *,
    shift: Tensor | None = None,
    sent: Tensor | None = None,
    negative_slope: Tensor | None = None,
    surrogate: Surrogate | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    r"""One time step of the burst neuron.

    .. math::
        m = v + z + \text{shift}, \quad
        n = \mathrm{clip}(\lfloor m / \theta \rfloor, 0, \Gamma), \quad
        y = \theta n, \quad v \leftarrow m - y

    With ``sent`` (the count emitted so far, S) spikes may be negative, but never take back more than
    was sent: n = max(clip(⌊m/θ⌋, −Γ, Γ), −S), S ← S + n.

    With ``negative_slope`` a the total S may fall below zero, and is weighed by the slope there:

    .. math::
        n = \mathrm{clip}(\lfloor m / \theta \rfloor, -\Gamma, \Gamma), \quad
        S \leftarrow S + n, \quad v \leftarrow m - \theta n, \quad y = f(S) - f(S - n), \qquad
        f(S) = \begin{cases} \theta S & S \ge 0 \\ a \theta S & S < 0 \end{cases}

    so that a constant current z gives Σ y = f(clip(⌊(zT + v(0))/θ⌋, −ΓT, ΓT)) after T steps, for
    0 ≤ v(0) < θ and either sign of z. With v(0) = θ/2 that rounds to the nearest count on both sides:
    LeakyReLU, as relu(x) − a·relu(−x) of two neurons would give it, in one.

    Args:
        z: input current ``[N, ...]``.
        v: membrane potential, shape of ``z``.
        threshold: θ > 0; broadcasts to ``z``.
        max_spikes: Γ ≥ 1, ``math.inf`` allowed unless ``surrogate`` is given.
        shift: constant input current added at every step; broadcasts to ``z``.
        sent: spike count so far, shape of ``z``; ``None`` for unsigned spikes.
        negative_slope: a, any finite number; broadcasts to ``z``; wants ``sent``, which may be negative.
        surrogate: a SpikingJelly surrogate function (applied to m/θ − k for every level k), or
            ``None`` for the plain staircase.

    Returns:
        Weighted output y, new membrane potential, new spike count (``None`` if unsigned).

    Source: Li & Zeng, "Efficient and accurate conversion of spiking neural network with burst
    spikes", IJCAI 2022. Signed spikes: Wang et al., "Signed neuron with memory", IJCAI 2022; Hu et
    al., "Fast-SNN", TPAMI 2023. The slope is derived here.

    Example:
        >>> y, v, _ = burst_step(torch.tensor([2.5]), torch.zeros(1), torch.tensor(1.0), 4)
        >>> y.item(), v.item()
        (2.0, 0.5)
        >>> y, v, sent = burst_step(torch.tensor([-2.5]), torch.zeros(1), torch.tensor(1.0), 4,
        ...                         sent=torch.zeros(1), negative_slope=torch.tensor(0.5))
        >>> y.item(), v.item(), sent.item()
        (-1.5, 0.5, -3.0)
    """
    m = v + z
    if shift is not None:
        m = m + shift
    level = m / threshold
    if negative_slope is None:
        count = _count(level, max_spikes, sent is not None, sent, surrogate)
        y = threshold * count
        return y, m - y, None if sent is None else sent + count
    before = _total(sent)
    count = _count(level, max_spikes, True, None, surrogate)
    after = before + count
    y = _leaky_output(count, before, after, threshold, negative_slope * threshold)
    return y, m - threshold * count, after


def count_step(
    terms: Sequence[Tensor],
    v: Tensor,
    scales: Sequence[Tensor],
    max_spikes: int,
    shift: Tensor,
    sent: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    r"""One time step of a burst neuron of threshold 1 that sends plain counts.

    .. math::
        m = v + \sum_i s_i x_i + \text{shift}, \quad
        n = \mathrm{clip}(\lfloor m \rfloor, 0, \Gamma), \quad v \leftarrow m - n

    in this order, in float32, each operation rounded for itself: the same bits everywhere. With ``sent``
    spikes may be negative, as in :func:`burst_step`.

    Args:
        terms: parts of the input current x ``[N, ...]``: counts in int8, or float32.
        v: membrane potential, shape of a term, float32.
        scales: s, what a unit of each term weighs; broadcast to a term.
        max_spikes: Γ, from 1 to 127.
        shift: constant input current; broadcasts to a term.
        sent: spike count so far; ``None`` for unsigned spikes.

    Returns:
        Counts n in int8, new membrane potential, new spike count (``None`` if unsigned).

    Source: :func:`burst_step` in units of its threshold.

    Example:
        >>> x, one = torch.tensor([5], dtype=torch.int8), torch.tensor(1.0)
        >>> n, v, _ = count_step([x], torch.zeros(1), [one / 2], 4, one)
        >>> n, v
        (tensor([3], dtype=torch.int8), tensor([0.5000]))
    """
    m = v
    for x, scale in zip(terms, scales, strict=True):
        m = m + scale * x.to(v.dtype)
    m = m + shift
    n = m.floor().clamp(0 if sent is None else -max_spikes, max_spikes)
    if sent is not None:
        n = torch.maximum(n, -sent)
    return n.to(torch.int8), m - n, None if sent is None else sent + n


def _total(sent: Tensor | None) -> Tensor:
    if sent is None:
        raise ValueError("negative_slope needs the spike count so far; give sent, zeros at the start")
    return sent


def _room_like(x_seq: Tensor, dtype: torch.dtype) -> Tensor:
    """Room for a sequence whose steps lie in memory as those of ``x_seq [T, ...]`` (channels last,
    say); an expanded time axis gets memory of its own.
    """
    step = torch.empty_like(x_seq[0], dtype=dtype)
    strides = (max(step.numel(), 1), *step.stride())
    return torch.empty_strided((len(x_seq), *step.shape), strides, dtype=dtype, device=step.device)


def burst_multi_step(
    z_seq: Tensor,
    v: Tensor,
    threshold: Tensor,
    max_spikes: float = 1,
    *,
    shift: Tensor | None = None,
    sent: Tensor | None = None,
    negative_slope: Tensor | None = None,
    surrogate: Surrogate | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """T time steps of the burst neuron; equal to T calls of :func:`burst_step`, bit for bit.

    Args:
        z_seq: input current ``[T, N, ...]``.
        v: membrane potential before the first step ``[N, ...]``.
        threshold: as in :func:`burst_step`.
        max_spikes: as in :func:`burst_step`.
        shift: as in :func:`burst_step`.
        sent: as in :func:`burst_step`.
        negative_slope: as in :func:`burst_step`.
        surrogate: as in :func:`burst_step`.

    Returns:
        Weighted outputs ``[T, N, ...]``, membrane potential and spike count after the last step.

    Source: as :func:`burst_step`.

    Example:
        >>> z_seq = torch.full((4, 1), 0.5)
        >>> y_seq, v, _ = burst_multi_step(z_seq, torch.zeros(1), torch.tensor(1.0))
        >>> y_seq.flatten().tolist()
        [0.0, 1.0, 0.0, 1.0]
    """
    # A compiler fuses the single steps itself.
    if needs_grad(z_seq, v, threshold, shift, negative_slope) or torch.compiler.is_compiling():
        options: Any = {"shift": shift, "negative_slope": negative_slope, "surrogate": surrogate}
        outputs = []
        for z in z_seq:
            y, v, sent = burst_step(z, v, threshold, max_spikes, sent=sent, **options)
            outputs.append(y)
        return torch.stack(outputs), v, sent

    y_seq = _room_like(z_seq, torch.promote_types(torch.result_type(z_seq, threshold), v.dtype))
    if negative_slope is not None:
        for z, y in zip(z_seq, y_seq, strict=True):
            step, v, sent = burst_step(
                z, v, threshold, max_spikes, shift=shift, sent=sent, negative_slope=negative_slope
            )
            y.copy_(step)
        return y_seq, v, sent

    # The same operations in the same order, on buffers that are allocated once.
    v = torch.empty_like(z_seq[0], dtype=v.dtype).copy_(v)
    count = torch.empty_like(v)
    negated = None if sent is None else torch.neg(sent, out=torch.empty_like(v, dtype=sent.dtype))
    lowest = 0.0 if sent is None else -max_spikes
    for z, y in zip(z_seq, y_seq, strict=True):
        v += z
        if shift is not None:
            v += shift
        torch.div(v, threshold, out=count)
        count.floor_().clamp_(lowest, max_spikes)
        if negated is not None:
            torch.maximum(count, negated, out=count)
            negated -= count
        torch.mul(count, threshold, out=y)
        v -= y
    return y_seq, v, None if negated is None else -negated


def li_pool_step(x: Tensor, total: Tensor, pooled: Tensor, pool: Pool) -> tuple[Tensor, Tensor, Tensor]:
    r"""One step of lateral-inhibition pooling: what max-pooling of the running total gained.

    .. math::
        \text{out}(t) = \mathrm{maxpool}\Big(\sum_{s \le t} x(s)\Big)
                      - \mathrm{maxpool}\Big(\sum_{s \le t-1} x(s)\Big)

    so that Σ out = maxpool(Σ x) at every T, for every kernel, stride, padding, dilation and
    adaptive size. Equal to the published winner-takes-all recursion (q_i += x_i; out = max q;
    q_i −= out) wherever that is defined; the closed form is our own derivation.

    Args:
        x: weighted spikes or currents ``[N, C, ...]``.
        total: Σ x so far, shape of ``x``.
        pooled: maxpool(total), or zeros before the first step.
        pool: any max-pooling callable.

    Returns:
        Output, new total, new pooled total.

    Source: Li & Zeng, IJCAI 2022 (LIPooling).

    Example:
        >>> pool = torch.nn.MaxPool1d(2)
        >>> out, total, pooled = li_pool_step(
        ...     torch.tensor([[[1.0, 0.0]]]), torch.zeros(1, 1, 2), torch.zeros(1, 1, 1), pool)
        >>> out, total, pooled = li_pool_step(torch.tensor([[[0.0, 1.0]]]), total, pooled, pool)
        >>> out.item()
        0.0
    """
    total = total + x
    now = pool(total)
    return now - pooled, total, now


def li_pool_multi_step(
    x_seq: Tensor, total: Tensor, pooled: Tensor, pool: Pool
) -> tuple[Tensor, Tensor, Tensor]:
    """T steps of :func:`li_pool_step`, with one pooling call for all of them.

    Args:
        x_seq: weighted spikes or currents ``[T, N, C, ...]``.
        total: Σ x before the first step ``[N, C, ...]``.
        pooled: maxpool(total), or zeros before the first step.
        pool: any max-pooling callable.

    Returns:
        Outputs ``[T, N, C, ...]``, total and pooled total after the last step.

    Source: as :func:`li_pool_step`.

    Example:
        >>> x_seq = torch.tensor([[[[1.0, 0.0]]], [[[0.0, 2.0]]]])
        >>> out, *_ = li_pool_multi_step(
        ...     x_seq, torch.zeros(1, 1, 2), torch.zeros(1, 1, 1), torch.nn.MaxPool1d(2))
        >>> out.flatten().tolist()
        [1.0, 1.0]
    """
    # Not cumsum: it may accumulate in another precision or order than single steps do.
    if needs_grad(x_seq, total, pooled) or torch.compiler.is_compiling():
        totals = []
        for x in x_seq:
            total = total + x
            totals.append(total)
        now = pool(torch.stack(totals).flatten(0, 1)).unflatten(0, x_seq.shape[:2])
        return torch.diff(now, dim=0, prepend=pooled.unsqueeze(0)), total, now[-1]

    # The same operations on buffers that are allocated once.
    sums = _room_like(x_seq, torch.result_type(x_seq, total))
    for x, current in zip(x_seq, sums, strict=True):
        total = torch.add(total, x, out=current)
    now = pool(sums.flatten(0, 1)).unflatten(0, x_seq.shape[:2])
    out = torch.empty_like(now)
    torch.sub(now[0], pooled, out=out[0])
    torch.sub(now[1:], now[:-1], out=out[1:])
    # Copies, not views: a view would keep the buffers of all steps alive.
    return out, total.clone(), now[-1].clone()


def _winners(x: Tensor, index: Tensor, spatial: int) -> Tensor:
    """Values of ``x`` at the flat spatial ``index`` that a max-pooling returned."""
    return x.flatten(-spatial).gather(-1, index.flatten(-spatial)).view_as(index)


def gated_pool_step(x: Tensor, total: Tensor, pool: IndexPool, spatial: int) -> tuple[Tensor, Tensor]:
    r"""One step of gated max-pooling: pass the spikes of the input with the largest total so far.

    .. math::
        \text{out}(t) = x_{i^*}(t), \quad i^* = \arg\max_i \sum_{s \le t} x_i(s)

    Args:
        x: weighted spikes ``[N, C, ...]``.
        total: Σ x so far, shape of ``x``.
        pool: a max-pooling that returns ``(values, indices)``.
        spatial: number of pooled dimensions.

    Returns:
        Output, new total.

    Source: Rueckauer et al., "Conversion of continuous-valued deep networks to efficient
    event-driven networks", Frontiers in Neuroscience 2017.

    Example:
        >>> pool = torch.nn.MaxPool1d(2, return_indices=True)
        >>> out, total = gated_pool_step(
        ...     torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[3.0, 0.0]]]), pool, spatial=1)
        >>> out.item()
        0.0
    """
    total = total + x
    return _winners(x, pool(total)[1], spatial), total
