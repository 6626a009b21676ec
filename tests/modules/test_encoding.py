import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spikingjelly.activation_based import functional
from torch import nn

from sj_burst.modules.encoding import CompensatedRateEncoder, PoissonEncoder, RateEncoder

values = st.lists(st.integers(-128, 128).map(lambda k: k / 64), min_size=1, max_size=6)


@given(values, st.integers(1, 12))
def test_rate_code_conserves_its_input(x, steps):
    x = torch.tensor([x], dtype=torch.float64)
    encoder = RateEncoder(2.0, step_mode="m").double()
    y = encoder(x.expand(steps, *x.shape))
    assert torch.equal(y.sum(0) + encoder.u, x * steps)
    assert set(y.unique().abs().tolist()) <= {0.0, 2.0}
    assert (y * x >= 0).all()  # no spike against the sign of the input
    assert (encoder.u.abs() < 2.0).all()


@given(values, st.integers(1, 12), st.integers(0, 2**16))
def test_compensated_code_delivers_everything(x, steps, seed):
    """Σ W y + W r = T·W x, where W r is what reaches the membrane with the first spikes."""
    x = torch.tensor([x], dtype=torch.float64)
    encoder = CompensatedRateEncoder(1.0, steps, step_mode="m").double()
    y = encoder(x.expand(steps, *x.shape))
    weight = torch.randn(
        3, x.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    assert torch.allclose(sum(weight @ step[0] for step in y), steps * weight @ x[0], atol=1e-9)
    # Apart from what is handed over at the first step, the code is spikes.
    assert set(y[1:].unique().abs().tolist()) <= {0.0, 1.0}


@given(values)
def test_compensation_is_at_most_half_a_quantum_in_range(x):
    x = torch.tensor([x], dtype=torch.float64) / 2  # |x| ≤ θ
    encoder = CompensatedRateEncoder(1.0, 8, step_mode="m").double()
    assert (encoder._loss(x).abs() <= 0.5 + 1e-12).all()


def test_poisson_code_has_the_right_mean():
    x = torch.tensor([[-1.5, -0.5, 0.0, 1.0, 9.0]])
    encoder = PoissonEncoder(2.0, step_mode="m")
    mean = encoder(x.expand(8000, *x.shape)).mean(0)
    assert torch.allclose(mean, x.clamp(-2, 2), atol=0.1)


@pytest.mark.parametrize(
    "encoder", [RateEncoder, PoissonEncoder, lambda t: CompensatedRateEncoder(t, 4)]
)
def test_bad_threshold(encoder):
    with pytest.raises(ValueError, match="positive"):
        encoder(0.0)


@pytest.mark.parametrize("encoder", [RateEncoder(1.0), CompensatedRateEncoder(1.0, 4)], ids=repr)
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_new_batch_without_reset_is_refused(encoder, step_mode):
    """One image after four would take on the accumulators of all four."""
    functional.reset_net(encoder)
    encoder.step_mode = step_mode
    time = (1,) if step_mode == "m" else ()
    encoder(torch.ones(*time, 4, 3))
    with pytest.raises(ValueError, match=r"accumulator of an input of shape \(4, 3\).*reset_net"):
        encoder(torch.ones(*time, 1, 3))


def test_bad_time_steps():
    with pytest.raises(ValueError, match="time_steps"):
        CompensatedRateEncoder(1.0, 0)


def test_compensated_beats_rate_beats_nothing(convert):
    ann = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    x = torch.randn(64, 6)
    errors = {}
    for coding in ("direct", "compensated", "rate"):
        snn = convert(ann, [x], time_steps=8, max_spikes=8, coding=coding)
        with torch.no_grad():
            errors[coding] = (snn.run(x, 8).mean(0) - ann(x)).norm().item()
    assert errors["direct"] <= errors["compensated"] * 1.1
    assert errors["compensated"] < errors["rate"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_codes_small_inputs_too(dtype):
    x = torch.full((4000, 1, 1), 0.0015, dtype=dtype)
    y = RateEncoder(1.0, "m").to(dtype)(x)
    assert y.dtype == dtype and y.float().sum() == 6
    torch.manual_seed(0)
    y = PoissonEncoder(1.0, "m").to(dtype)(torch.full((200, 1, 4000), 0.001, dtype=dtype))
    assert y.dtype == dtype and y.float().mean().item() == pytest.approx(0.001, rel=0.2)
    coded = CompensatedRateEncoder(1.0, 8, "m").to(dtype)(torch.full((8, 1, 1), 0.3, dtype=dtype))
    assert coded.dtype == dtype


@pytest.mark.parametrize("threshold", [torch.tensor([1.0, 2.0]), float("inf"), float("nan"), 0.0])
@pytest.mark.parametrize("encoder", [RateEncoder, PoissonEncoder])
def test_the_threshold_is_one_number(encoder, threshold):
    with pytest.raises(ValueError, match="one positive, finite number"):
        encoder(threshold)
