"""Runs of every trainer that are interrupted, and go on."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from sj_burst.training.qcfs import QCFS
from sj_burst.training.rate_norm import RateNorm
from sj_burst.training.scale_stage import train_threshold_scale
from sj_burst.training.weight_stage import train_rates
from sj_burst.utils.files import write_atomically
from tests.training.networks import Interrupt, labelled_loader, rate_norm_mlp


def resumable_stage_one(path=None, writer=None):
    generator = torch.Generator().manual_seed(3)
    data = labelled_loader(generator=generator)
    torch.manual_seed(2)
    net = nn.Sequential(nn.Dropout(0.2), *rate_norm_mlp())
    torch.manual_seed(4)
    options = dict(epochs=4, lr=0.05, checkpoint=path, writer=writer, progress=False)
    return train_rates(net, data, **options).state_dict()


def resumable_stage_two(path=None, writer=None):
    data = labelled_loader(generator=torch.Generator().manual_seed(3))
    model = train_rates(rate_norm_mlp(), labelled_loader(), epochs=2, lr=0.05, progress=False)
    torch.manual_seed(4)
    options = dict(epochs=5, lr=0.3, checkpoint=path, writer=writer, progress=False)
    found = train_threshold_scale(model, model, data, labelled_loader(), **options)
    assert found
    scales = {f"{c.name} {c.epoch}": c.state_dict["2.scale_logit"] for c in found}
    return scales


@pytest.mark.parametrize("train", [resumable_stage_one, resumable_stage_two])
@pytest.mark.parametrize("after", [1, 3, 4])
def test_an_interrupted_run_ends_as_if_it_had_not_been(train, after, tmp_path):
    path = tmp_path / "run.pt"
    expected = train()
    with pytest.raises(KeyboardInterrupt):
        train(path, Interrupt(after))
    for _ in range(2):  # the second call finds the run finished
        got = train(path)
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]


def test_foreign_checkpoints_are_refused(tmp_path):
    path = tmp_path / "run.pt"
    net, data = rate_norm_mlp(), labelled_loader()
    options = dict(checkpoint=path, progress=False)
    train_threshold_scale(net, net, data, data, epochs=1, **options)
    with pytest.raises(ValueError, match=r"lam=0.1 \(now 0.2\)"):
        train_threshold_scale(net, net, data, data, epochs=1, lam=0.2, **options)
    with pytest.raises(ValueError, match="stage=2"):
        train_rates(net, data, epochs=1, **options)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged"):
        train_threshold_scale(net, net, data, data, epochs=1, **options)
    torch.save({"a": 1}, path)
    with pytest.raises(ValueError, match="not written by"):
        train_threshold_scale(net, net, data, data, epochs=1, **options)
    write_atomically({"format": 4}, path)
    with pytest.raises(ValueError, match="not a checkpoint of this training"):
        train_threshold_scale(net, net, data, data, epochs=1, **options)


def test_stage_two_goes_on_with_the_networks_it_was_started_from_only(tmp_path):
    net, other, data = rate_norm_mlp(), rate_norm_mlp(seed=1), labelled_loader()
    options = dict(checkpoint=tmp_path / "run.pt", epochs=1, progress=False)
    train_threshold_scale(net, net, data, data, **options)
    wide = nn.Sequential(nn.Linear(6, 4), RateNorm(), nn.Linear(4, 3))
    for model, teacher, name in ((other, net, "model.0.weight"), (net, other, "teacher.0.weight")):
        with pytest.raises(ValueError, match=f"started from another network: {name}.* differ; pass the"):
            train_threshold_scale(model, teacher, data, data, **options)
    with pytest.raises(ValueError, match="another network"):
        train_threshold_scale(wide, wide, data, data, **options)
    train_threshold_scale(net, net, data, data, **options)


def test_stage_one_goes_on_from_any_weights_of_the_architecture(tmp_path):
    data, options = labelled_loader(), dict(checkpoint=tmp_path / "run.pt", epochs=1, progress=False)
    expected = train_rates(rate_norm_mlp(), data, **options).state_dict()
    got = train_rates(rate_norm_mlp(seed=1), data, **options).state_dict()
    assert all(torch.equal(value, got[name]) for name, value in expected.items())
    wide = nn.Sequential(nn.Linear(6, 4), RateNorm(), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="another network"):
        train_rates(wide, data, **options)


def test_a_generator_that_is_missing_is_told_of_before_anything_changes(tmp_path):
    options = dict(epochs=2, checkpoint=tmp_path / "run.pt", progress=False)
    data = labelled_loader(generator=torch.Generator().manual_seed(3))
    with pytest.raises(KeyboardInterrupt):
        train_rates(rate_norm_mlp(), data, writer=Interrupt(2), **options)
    with pytest.raises(ValueError, match="loader had a generator"):
        train_rates(rate_norm_mlp(), list(data), **options)
    train_rates(rate_norm_mlp(), data, **options)


class Noisy(TensorDataset):
    """Images whose noise is NumPy's."""

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return x + torch.from_numpy(np.random.rand(*x.shape)).float(), y


def test_samplers_and_numpy_go_on_too(tmp_path):
    def train(path=None, writer=None):
        np.random.seed(0)
        data = Noisy(*labelled_loader().dataset.tensors)
        sampler = RandomSampler(data, generator=torch.Generator().manual_seed(1))
        options = dict(epochs=4, lr=0.05, checkpoint=path, writer=writer, progress=False)
        return train_rates(rate_norm_mlp(), DataLoader(data, 16, sampler=sampler), **options)

    expected = train().state_dict()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run.pt", Interrupt(3))
    got = train(tmp_path / "run.pt").state_dict()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_numbers_of_numpy_are_numbers(tmp_path):
    options = dict(checkpoint=tmp_path / "run.pt", progress=False)
    options |= dict(epochs=np.int64(2), lr=np.float64(0.05), weight_decay=np.float32(0.5))
    net, data = rate_norm_mlp(), labelled_loader()
    expected = train_rates(net, data, **options).state_dict()
    got = train_rates(net, data, **options).state_dict()
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    options = dict(checkpoint=tmp_path / "second.pt", progress=False, lam=np.float64(0.1))
    first, again = (train_threshold_scale(net, net, data, data, epochs=1, **options) for _ in "ab")
    assert [vars(c).keys() for c in first] == [vars(c).keys() for c in again]


def test_stage_one_goes_on_with_the_same_activations_only(tmp_path):
    data, options = labelled_loader(), dict(checkpoint=tmp_path / "run.pt", epochs=1, progress=False)
    train_rates(nn.Sequential(nn.Linear(6, 3), QCFS(4), nn.Linear(3, 3)), data, **options)
    with pytest.raises(ValueError, match="another network: network differ"):
        train_rates(nn.Sequential(nn.Linear(6, 3), QCFS(16), nn.Linear(3, 3)), data, **options)


def test_what_could_not_be_kept_is_refused_before_training(tmp_path):
    path = tmp_path / "missing" / "run.pt"
    with pytest.raises(ValueError, match="there is no folder"):
        train_rates(rate_norm_mlp(), labelled_loader(), checkpoint=path, progress=False)
    with pytest.raises(ValueError, match="float16"):
        train_rates(rate_norm_mlp().half(), labelled_loader(), progress=False)


def test_outputs_that_are_no_scores_are_refused():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = rate_norm_mlp()

        def forward(self, x):
            return {"out": self.net(x)}

    with pytest.raises(TypeError, match="returns a dict"):
        train_rates(Several(), labelled_loader(), progress=False)
