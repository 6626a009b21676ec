"""Inputs that change from step to step."""

import pytest
import torch
from spikingjelly.activation_based import functional
from spikingjelly.datasets import pad_sequence_collate
from torch import nn
from torch.utils.data import DataLoader

import sj_burst
from sj_burst.analysis.inactivated import inactivated_share
from tests.conversion.test_inputs import TwoStream
from tests.networks import vgg

T, N = 6, 10
EXACT = {"calibration": "none", "threshold": "max", "max_spikes": 16, "progress": False}


def quantized(net):
    """Weights whose sums have no rounding in double precision, in whatever order."""
    net = net.double()
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.is_floating_point():
            tensor.data = (64 * tensor.data).round() / 64
    return net


def plain():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(16, 5)),
    )


def events(steps=T, samples=N, channels=2):
    """Counts of events ``[N, T, C, H, W]``, unlike from step to step."""
    generator = torch.Generator().manual_seed(steps)
    return torch.poisson(torch.rand(samples, steps, channels, 8, 8, generator=generator), generator)


def converted(ann, x, **options):
    """With thresholds that are sums of powers of two, too."""
    snn = sj_burst.convert(ann, [x], time_dim=1, **EXACT | options)
    for node in snn.neurons().values():
        node.threshold = (64 * node.threshold).ceil() / 64
        node.v_init = node.threshold / 2
    return snn


@torch.no_grad()
def by_hand(snn, x):
    """Mean output so far ``[T, N, ...]``, one sample and one step at a time."""
    assert snn.step_mode == "s"
    samples = []
    for sample in x:
        outputs = [snn(frame.unsqueeze(0)) for frame in sample]
        functional.reset_net(snn)
        samples.append(torch.cat(outputs).cumsum(0) / torch.arange(1, len(x[0]) + 1).unsqueeze(1))
    return torch.stack(samples, 1)


@pytest.mark.parametrize("chunk", [None, 1, 4, 100])
@pytest.mark.parametrize("time_dim", [0, 1])
@pytest.mark.parametrize("max_pool_first", [False, True])
def test_simulate_is_the_loop_over_frames_bit_for_bit(chunk, time_dim, max_pool_first):
    ann, x = quantized(plain()), events().double()
    if max_pool_first:
        ann = nn.Sequential(nn.MaxPool2d(3, 1, 1), *ann)
    snn = converted(ann, x)
    means = by_hand(snn, x)
    target = means[-1].argmax(1).roll(3)
    shown = x if time_dim == 1 else x.transpose(0, 1)
    loader = [(shown[:, :7], target[:7]), (shown[:, 7:], target[7:])]
    if time_dim == 1:
        loader = [(shown[:7], target[:7]), (shown[7:], target[7:])]
    result = sj_burst.simulate(
        snn, loader, T, time_dim=time_dim, chunk=chunk, reference=ann, progress=False
    )
    assert torch.equal(result.output, means[-1])
    assert torch.equal(result.accuracy, (means.argmax(2) == target).float().mean(1))
    with torch.no_grad():
        wanted = ann(x.mean(1))
    errors = torch.stack([(mean - wanted).norm() / wanted.norm() for mean in means])
    assert torch.allclose(result.error.double(), errors, atol=1e-6)


@pytest.mark.parametrize("coding", ["direct", "rate"])
@torch.no_grad()
def test_equal_frames_are_the_held_picture(coding):
    ann, x = vgg(), torch.rand(N, 2, 8, 8)
    frames = x.unsqueeze(1).expand(-1, T, -1, -1, -1)
    snn = sj_burst.convert(ann, [x], coding=coding, time_steps=T, progress=False)
    held = sj_burst.simulate(snn, [x], T, reference=ann, progress=False)
    moving = sj_burst.simulate(snn, [frames], T, time_dim=1, reference=ann, progress=False)
    assert torch.allclose(held.output, moving.output, atol=1e-5)
    assert torch.allclose(held.error, moving.error, atol=1e-5)
    assert held.total_spikes[-1].item() == pytest.approx(moving.total_spikes[-1].item(), rel=1e-3)
    kept, shown = held.operations, moving.operations
    assert shown.synops == pytest.approx(kept.synops, rel=1e-3)
    assert shown.macs == pytest.approx(T * kept.macs)
    assert shown.ann_macs == kept.ann_macs


@torch.no_grad()
def test_rates_approach_the_ann_of_the_mean_frame():
    ann, x = vgg(), events(128)
    snn = sj_burst.convert(ann, [x], time_dim=1, **EXACT)
    result = sj_burst.simulate(snn, [x], 128, time_dim=1, reference=ann, progress=False)
    assert result.error[-1] < 0.05 and result.error[-1] < result.error[1] / 3


def test_every_function_takes_sequences():
    ann, x = plain(), events()
    with torch.no_grad():
        target = ann(x.mean(1)).argmax(1)
    loader = DataLoader(list(zip(x, target, strict=True)), 4)
    options = {"time_steps": T, "max_spikes": 8, "progress": False}
    snn = sj_burst.convert(ann, loader, time_dim=1, **options)
    result = sj_burst.simulate(snn, loader, T, time_dim=1, reference=ann, progress=False)
    found = sj_burst.report(snn, ann, loader, time_dim=1)
    assert found.output_error == pytest.approx(result.error[-1].item(), rel=1e-3)
    for layer in found.layers:
        assert sum(layer.parts.values()) == pytest.approx(layer.error, abs=1e-5)
    counted = sj_burst.synops(snn, loader, T, time_dim=1)
    assert counted.synops == pytest.approx(result.operations.synops)
    assert counted.macs == found.operations.macs == result.operations.macs
    assert counted.layers["0"].macs == T * counted.layers["0"].ann_macs
    assert set(inactivated_share(snn, ann, loader, T, time_dim=1)) == set(snn.neurons())

    pictures = [(x.mean(1), target)]
    same = sj_burst.convert(ann, pictures, **options)
    each = sj_burst.convert(ann, loader, time_dim=1, frames="each", **options)
    as_rows = sj_burst.convert(ann, [x.flatten(0, 1)], **options)
    for one, other in ((snn, same), (each, as_rows)):
        pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in pairs)

    first = x.transpose(0, 1)
    margin = sj_burst.fit_early_exit(snn, loader, T, max_loss=20, time_dim=1)
    assert margin == sj_burst.fit_early_exit(snn, [(first, target)], T, max_loss=20, time_dim=0)
    left = sj_burst.simulate(snn, loader, T, early_exit=margin, time_dim=1, progress=False)
    assert left.accuracy[-1] >= result.accuracy[-1] - 0.2


def test_early_exit_keeps_the_place_in_the_sequence():
    ann, x = quantized(plain()), events().double()
    snn = converted(ann, x)
    means = by_hand(snn, x)
    margins = torch.stack([sj_burst.simulation.early_exit.confidence_margin(m) for m in means])
    margin = margins[2].median().item()
    result = sj_burst.simulate(snn, [x], T, time_dim=1, early_exit=margin, progress=False)
    reached = margins >= margin
    reached[-1] = True
    steps = reached.int().argmax(0)
    assert len(steps.unique()) > 2
    assert torch.equal(result.exit_steps, steps + 1)
    assert torch.equal(result.output, means[steps, torch.arange(N)])


def test_finetune_sees_every_frame():
    """Either step mode, the same weights; and other frames, others."""
    ann, x, target = plain(), events(3), torch.arange(N) % 5
    snn = sj_burst.convert(ann, [x], time_dim=1, **EXACT)

    def weight(x, time_dim=1, **options):
        loader = [(x, target)]
        tuned = sj_burst.training.finetune(
            snn, loader, 3, time_dim=time_dim, lr=1e-2, epochs=2, progress=False, **options
        )
        return tuned.graph.get_submodule("0").weight

    tuned = weight(x)
    assert torch.allclose(tuned, weight(x, step_mode="s"), atol=1e-5)
    assert torch.allclose(tuned, weight(x.transpose(0, 1), time_dim=0), atol=1e-5)
    assert not torch.allclose(tuned, weight(x.flip(1)), atol=1e-3)
    assert not torch.allclose(tuned, weight(x.mean(1), time_dim=None), atol=1e-3)


@torch.no_grad()
def test_networks_of_others_step_through_frames():
    from spikingjelly.activation_based import neuron

    net = nn.Sequential(nn.Flatten(), nn.Linear(128, 5), neuron.IFNode(v_reset=None))
    x = events()
    result = sj_burst.simulate(net, [x], T, time_dim=1, progress=False)
    wanted = torch.stack([net(frame) for frame in x.transpose(0, 1)]).mean(0)
    assert torch.equal(result.output, wanted)


@torch.no_grad()
def test_a_read_out_waits_for_the_mean_of_all_steps():
    ann, x = nn.Sequential(plain(), nn.Softmax(dim=1)), events(64)
    snn = sj_burst.convert(ann, [x], time_dim=1, **EXACT)
    result = sj_burst.simulate(snn, [x], 64, time_dim=1, reference=ann, progress=False)
    assert torch.allclose(result.output.sum(1), torch.ones(N))
    assert result.error[-1] < 0.02


@torch.no_grad()
def test_several_sequences_at_once():
    torch.manual_seed(0)
    ann = TwoStream()
    x = (events(64), torch.randn(N, 64, 5))
    snn = sj_burst.convert(ann, [(x,)], time_dim=1, **EXACT)
    assert len(snn.inputs) == 2
    result = sj_burst.simulate(snn, [(x,)], 64, time_dim=1, reference=ann, progress=False)
    assert result.error[-1] < 0.05
    unlike = (x[0], x[1][:, :9])
    with pytest.raises(ValueError, match="sequences of 9 and 64 steps"):
        sj_burst.simulate(snn, [(unlike,)], 64, time_dim=1, progress=False)


def test_memory_grows_with_the_chunk(monkeypatch):
    """No more than a chunk of frames is folded at a time."""
    ann, x = plain(), events(12)
    snn = sj_burst.convert(ann, [x], time_dim=1, **EXACT)
    seen = []
    snn.graph.get_submodule("0").register_forward_hook(lambda _, __, out: seen.append(len(out)))
    sj_burst.simulate(snn, [x], 12, chunk=5, time_dim=1, progress=False)
    assert [rows for rows in seen if rows > 1] == [5 * N, 5 * N, 2 * N]


class Log(nn.Module):
    def forward(self, x):
        return (1 + x).log()


def test_what_is_not_affine_before_the_first_neuron_is_refused():
    ann, x = nn.Sequential(Log(), plain()), events()
    with pytest.raises(ValueError, match=r"log \(Tensor.log"):
        sj_burst.convert(ann, [x], time_dim=1, **EXACT)
    snn = sj_burst.convert(ann, [x.mean(1)], **EXACT)  # right for pictures
    sj_burst.simulate(snn, [x.mean(1)], T, progress=False)
    remedy = r"(?s)affine before the first neuron; apply the following in the loader.*log \(Tensor.log"
    for run in (
        lambda: sj_burst.simulate(snn, [x], T, time_dim=1, progress=False),
        lambda: sj_burst.report(snn, ann, [x], T, time_dim=1),
        lambda: sj_burst.training.finetune(
            snn, [(x, torch.zeros(N).long())], T, time_dim=1, step_mode="s", progress=False
        ),
    ):
        with pytest.raises(ValueError, match=remedy):
            run()
    pool = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(2, 3, 1), nn.ReLU())
    snn = sj_burst.convert(pool, [x], time_dim=1, max_pool="spike", **EXACT)
    with pytest.raises(ValueError, match="use max_pool='lateral_inhibition'"):
        sj_burst.simulate(snn, [x], T, time_dim=1, progress=False)


def test_compensated_coding_is_for_inputs_that_are_held():
    x = events()
    with pytest.raises(ValueError, match=r"compensated.*time_dim=1"):
        sj_burst.convert(plain(), [x], time_dim=1, coding="compensated", progress=False)
    snn = sj_burst.convert(plain(), [x.mean(1)], coding="compensated", progress=False)
    with pytest.raises(ValueError, match="compensated"):
        sj_burst.simulate(snn, [x], T, time_dim=1, progress=False)


def test_other_layouts_are_refused():
    x = events()
    snn = sj_burst.convert(plain(), [x], time_dim=1, **EXACT)

    def simulate(batch, time_steps=T, time_dim=1):
        return sj_burst.simulate(snn, [batch], time_steps, time_dim=time_dim, progress=False)

    with pytest.raises(ValueError, match=rf"sequences of {T} steps .*time_steps is 4.*time_steps={T}"):
        simulate(x, 4)
    with pytest.raises(ValueError, match=rf"sequences of {N} steps \(time_dim=0\)"):
        simulate(x, time_dim=0)
    with pytest.raises(ValueError, match="time_dim must be 0 for inputs"):
        simulate(x, time_dim=2)
    with pytest.raises(ValueError, match=r"reads sequences \[N, T, ...\]"):
        simulate(x, time_dim=None)
    with pytest.raises(ValueError, match=r"time_dim=1 wants inputs \[N, T, ...\]"):
        simulate(x[:, :, 0, 0, 0])
    with pytest.raises(ValueError, match=r"sequences of torch\.uint8"):
        simulate(x.byte())
    with pytest.raises(ValueError, match="frames must be 'mean' or 'each'"):
        sj_burst.convert(plain(), [x], time_dim=1, frames="all", progress=False)
    with pytest.raises(ValueError, match="time_dim=1 needs data"):
        sj_burst.report(snn, time_dim=1)
    samples = [(sample, 0) for sample in x]
    assert simulate(pad_sequence_collate(samples)).samples == N
    samples[1] = (x[1, :4], 0)
    with pytest.raises(ValueError, match=f"padded to {T} steps"):
        simulate(pad_sequence_collate(samples))
