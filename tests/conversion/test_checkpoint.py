import copy
import math
import os
import pickle
import random

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from sj_burst import load, save
from sj_burst.utils.files import read_whole, write_atomically
from tests.networks import resnet, vgg

X = torch.rand(8, 2, 8, 8)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"calibration": "advanced", "max_spikes": 2},
        {"channel_wise": False, "potential": "shift", "inactivated_spikes": "allow"},
        {"inactivated_spikes": "spike_calibration", "allowance": 1, "max_pool": "gated"},
        {"coding": "compensated", "max_pool": "average"},
        {"max_spikes": {"2": 1, "*": 3}},
    ],
)
@torch.no_grad()
def test_round_trip_is_exact(convert, tmp_path, options):
    snn = convert(vgg(), [X], **options)
    save(snn, tmp_path / "snn.pt")
    again = load(tmp_path / "snn.pt", vgg(seed=7))  # other weights, same architecture
    assert torch.equal(snn.run(X, 5), again.run(X, 5))
    assert again.options == snn.options
    assert not again.training


@torch.no_grad()
def test_residual_networks_come_back(convert, tmp_path):
    x = torch.randn(4, 3, 8, 8)
    snn = convert(resnet(), [x], calibration="advanced")
    save(snn, tmp_path / "snn.pt")
    assert torch.equal(snn.run(x, 4), load(tmp_path / "snn.pt", resnet(seed=3)).run(x, 4))


def test_a_mean_over_positions_comes_back(convert, tmp_path):
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.conv(x).relu().mean((2, 3)))

    ann = Mean()
    snn = convert(ann, [X])
    save(snn, tmp_path / "snn.pt")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "snn.pt", ann).run(X, 3), snn.run(X, 3))


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(144, 3).double()

    def forward(self, x):
        return self.head(self.conv(x).relu().flatten(1).double())


@torch.no_grad()
def test_layers_of_several_precisions_come_back(convert, tmp_path):
    ann = Mixed()
    snn = convert(ann, [X])
    save(snn, tmp_path / "snn.pt")
    again = load(tmp_path / "snn.pt", Mixed())
    assert torch.equal(snn.run(X, 4), again.run(X, 4))
    assert {p.dtype for p in again.parameters()} == {torch.float32, torch.float64}
    with pytest.raises(ValueError, match="does not fit ann"):
        load(tmp_path / "snn.pt", Mixed().float())


@torch.no_grad()
def test_precision_of_the_file_counts_where_it_is_one(convert, tmp_path):
    snn = convert(vgg(), [X]).double()
    save(snn, tmp_path / "snn.pt")
    again = load(tmp_path / "snn.pt", vgg())
    assert torch.equal(snn.run(X.double(), 4), again.run(X.double(), 4))


@torch.no_grad()
@pytest.mark.parametrize("make", [lambda: vgg(), lambda: nn.Sequential(vgg(), nn.Softmax(1))])
def test_pickle_brings_networks_back_too(convert, make):
    snn = convert(make(), [X])
    again = pickle.loads(pickle.dumps(snn))
    assert torch.equal(snn.answer(X, 5), again.answer(X, 5))
    assert str(again) == str(snn)


def test_infinite_bursts_come_back_with_gradients_on(convert, tmp_path):
    snn = convert(vgg(), [X], max_spikes=math.inf, threshold="max", calibration="none")
    save(snn, tmp_path / "snn.pt")
    again = load(tmp_path / "snn.pt", vgg())
    with torch.no_grad():
        assert torch.equal(snn.run(X, 3), again.run(X, 3))


def test_checksums_are_written_whatever_torch_is_told(convert, tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        save(convert(vgg(), [X]), tmp_path / "snn.pt")
        assert not torch.serialization.get_crc32_options()
    finally:
        torch.serialization.set_crc32_options(True)
    load(tmp_path / "snn.pt", vgg())


def test_wrong_architecture(convert, tmp_path):
    save(convert(vgg(), [X]), tmp_path / "snn.pt")
    with pytest.raises(ValueError, match="architecture"):
        load(tmp_path / "snn.pt", nn.Sequential(nn.Flatten(), nn.Linear(128, 3), nn.ReLU()))
    other = vgg()
    other[9] = nn.Linear(32, 7)
    with pytest.raises(ValueError, match="does not fit"):
        load(tmp_path / "snn.pt", other)


@pytest.mark.parametrize(
    ("index", "module", "message"),
    [
        (3, nn.AvgPool2d(2), "AvgPool2d"),  # none of these shows in shapes of parameters
        (7, nn.MaxPool2d(2), "7.pool.kernel_size = 2"),
        (4, nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular"), "circular"),
        (0, nn.Conv2d(2, 4, 3, padding=1), "does not fit ann"),
    ],
)
def test_architectures_that_parameters_do_not_tell_apart(convert, tmp_path, index, module, message):
    save(convert(vgg(), [X]), tmp_path / "snn.pt")
    other = vgg()
    other[index] = module
    if index == 0:
        other[1], other[4] = nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, padding=1)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "snn.pt", other)


def test_foreign_and_damaged_files(convert, tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.pt", vgg())
    torch.save({"a": 1}, tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match="not written by"):
        load(tmp_path / "foreign.pt", vgg())
    snn = convert(vgg(), [X])
    save(snn, tmp_path / "snn.pt")
    whole = (tmp_path / "snn.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        load(tmp_path / "cut.pt", vgg())
    flipped = bytearray(whole)
    flipped[whole.index(next(snn.parameters()).detach().numpy().tobytes())] ^= 0x10
    (tmp_path / "flipped.pt").write_bytes(flipped)
    with pytest.raises(ValueError, match="is damaged, in its part"):
        load(tmp_path / "flipped.pt", vgg())
    write_atomically({"a": 1}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"not written by sj_burst.save"):
        load(tmp_path / "other.pt", vgg())
    content = read_whole(tmp_path / "snn.pt")
    write_atomically(content | {"format": 99}, tmp_path / "later.pt")
    with pytest.raises(ValueError, match="format 99"):
        load(tmp_path / "later.pt", vgg())
    options = content.pop("options")
    write_atomically(content, tmp_path / "less.pt")
    with pytest.raises(ValueError, match=r"lacks \['options'\]"):
        load(tmp_path / "less.pt", vgg())
    write_atomically(content | {"options": options | {"new": 1}}, tmp_path / "more.pt")
    with pytest.raises(ValueError, match="another version"):
        load(tmp_path / "more.pt", vgg())


@pytest.fixture
def small(convert, tmp_path):
    """A small network, what its file holds, and how to load a file with other contents."""
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Conv1d(2, 3, 1), nn.ReLU(), nn.Conv1d(3, 2, 1))
    snn = convert(ann, [torch.rand(8, 2, 4)], potential="shift")
    path = tmp_path / "small.pt"
    save(snn, path)
    content = read_whole(path)

    def load_with(**changes):
        write_atomically(content | changes, path)
        return load(path, ann)

    return ann, snn, path, content, load_with


@pytest.mark.slow
def test_a_flipped_bit_anywhere_is_noticed_or_harmless(small):
    ann, snn, path, _, _ = small
    whole = path.read_bytes()
    directory = whole.index(b"PK\x01\x02")
    generator = random.Random(0)
    bits = [generator.randrange(8 * len(whole)) for _ in range(200)]
    bits += [generator.randrange(8 * directory, 8 * len(whole)) for _ in range(200)]
    at = directory
    while at >= 0:  # the bit that makes a part a folder, which torch does not read
        bits.append(8 * (at + 38) + 4)
        at = whole.find(b"PK\x01\x02", at + 1)
    refused = 0
    for bit in bits:
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            again = load(path, ann)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            state = again.state_dict()
            assert again.options == snn.options
            assert all(torch.equal(value, state[name]) for name, value in snn.state_dict().items())
    assert refused > 100


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("options", value) for value in (None, 3, [], {1: 2})),
        *(
            ("options", {name: value})
            for name in ("time_steps", "threshold")
            for value in (None, -1, [])
        ),
        *(("options", {"max_spikes": value}) for value in (None, 0, "4", math.nan, {}, {"*": "x"})),
        *(("options", {"channel_wise": 2}), ("options", {"coding": []}), ("options", {"potential": 1})),
        *(("inputs", value) for value in (None, 3, {}, {"x": [[2]]}, {1: [[2], torch.float32]})),
        *(
            ("inputs", {"x": [shape, torch.float32]})
            for shape in (None, 3, [2, "4"], [2, 4.0], [2, -4], [True, 4], (2, 4))
        ),
        *(("inputs", {"x": [[2, 4], dtype]}) for dtype in (None, "float32", 5)),
        *(("dead", value) for value in (None, [], {"1": "2"}, {1: 2})),
        *(("max_spikes", value) for value in (None, [4], {"1": 0}, {"1": "4"}, {"1": math.nan}, {1: 4})),
        *(("architecture", value) for value in (None, "x", [1], {})),
        *(("state_dict", value) for value in (None, [], {"a": 1}, {1: torch.ones(1)})),
    ],
)
def test_contents_of_the_wrong_type_are_named(small, key, value):
    _, _, path, content, load_with = small
    if key == "options" and isinstance(value, dict) and 1 not in value:
        value = content["options"] | value
    with pytest.raises(ValueError, match=key if value is None else "is damaged") as caught:
        load_with(**{key: value})
    assert str(path) in str(caught.value)
    load_with()


@pytest.mark.parametrize("key", ["threshold", "v_init", "shift"])
@pytest.mark.parametrize(
    "value",
    [
        *(torch.full((3,), bad) for bad in (math.nan, math.inf)),
        *(torch.ones(shape) for shape in ((4,), (2, 4), (3, 1, 4), (8, 3, 4), (0,))),
        torch.ones(3, dtype=torch.int64),
    ],
)
def test_neurons_that_cannot_be_are_refused(small, key, value):
    _, _, _, content, load_with = small
    state = content["state_dict"]
    with pytest.raises(ValueError, match=r"small\.pt does not fit ann"):
        load_with(state_dict=state | {f"graph.1.{key}": value})
    for bad in (0.0, -1.0):
        with pytest.raises(ValueError, match="threshold must be positive"):
            load_with(state_dict=state | {"graph.1.threshold": torch.full((3,), bad)})
    for missing in ("threshold", "v_init"):
        with pytest.raises(ValueError, match=f"neuron '1' has no {missing}"):
            load_with(state_dict={k: v for k, v in state.items() if k != f"graph.1.{missing}"})
    if key == "threshold":
        for shape in ((), (1,), (3, 1), (3, 4), (1, 4)):  # all that broadcasts to one sample
            load_with(state_dict=state | {"graph.1.threshold": torch.ones(shape)})


def test_networks_without_plain_values_get_a_remedy(small):
    ann, _, path, _, _ = small
    with pytest.raises(ValueError, match=r"ann is on the meta device.*to_empty\(device='cpu'\)"):
        load(path, nn.Sequential(*ann).to("meta"))
    load(
        path,
        nn.Sequential(
            nn.Conv1d(2, 3, 1), nn.ReLU(), nn.Conv1d(3, 2, 1, device="meta").to_empty(device="cpu")
        ),
    )
    pruned = nn.Sequential(nn.Conv1d(2, 3, 1), nn.ReLU(), nn.Conv1d(3, 2, 1))
    for layer in (pruned[0], pruned[2]):
        prune.l1_unstructured(layer, "weight", 0.5)
    load(path, pruned)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_network_with_the_older_weight_norm(small):
    _, _, path, _, _ = small
    normed = nn.Sequential(nn.Conv1d(2, 3, 1), nn.ReLU(), nn.Conv1d(3, 2, 1))
    nn.utils.weight_norm(normed[0])
    load(path, normed)
    nn.utils.remove_weight_norm(normed[0])
    load(path, normed)


def test_an_interrupted_save_leaves_the_old_file(convert, tmp_path, monkeypatch):
    path = tmp_path / "snn.pt"
    snn = convert(vgg(), [X])
    save(snn, path)
    before = path.read_bytes()

    def broken(content, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(KeyboardInterrupt):
        save(snn, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["snn.pt"]


def test_tied_weights_that_calibration_untied(convert, tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.c(torch.relu(self.b(torch.relu(self.a(x)))))

    ann, x = Tied(), torch.rand(32, 8)
    snn = convert(ann, [x], time_steps=4, max_spikes=1)
    save(snn, tmp_path / "snn.pt")
    again = load(tmp_path / "snn.pt", ann)
    with torch.no_grad():
        assert torch.equal(snn.run(x, 4), again.run(x, 4))
    assert ann.a.weight is ann.b.weight


def test_where_a_file_goes(convert, tmp_path):
    snn = convert(vgg(), [X])
    with pytest.raises(FileNotFoundError, match=r"no folder .*missing; make it first"):
        save(snn, tmp_path / "missing" / "snn.pt")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        save(snn, tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is no ordinary file"):
        save(snn, tmp_path / "pipe")
    (tmp_path / "link.pt").symlink_to(tmp_path / "snn.pt")
    save(snn, tmp_path / "link.pt")
    (tmp_path / "plain").touch()
    assert (tmp_path / "link.pt").is_symlink()
    assert (tmp_path / "snn.pt").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_load_wants_the_network_that_was_converted(convert, tmp_path):
    snn = convert(vgg(), [X])
    save(snn, tmp_path / "snn.pt")
    for wrong in (snn, None):
        with pytest.raises(TypeError, match="load wants the network that was converted"):
            load(tmp_path / "snn.pt", wrong)


def test_only_our_networks():
    with pytest.raises(TypeError, match="converted by BurstRecipe"):
        save(vgg(), "x.pt")


@pytest.mark.parametrize("coding", ["rate", "poisson", "compensated"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_coded_networks_of_another_precision(convert, coding, dtype, tmp_path):
    ann, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.rand(8, 3)
    snn = convert(copy.deepcopy(ann).to(dtype), [x.to(dtype)], coding=coding)
    assert snn.graph.encoder.threshold.dtype == dtype
    save(snn, tmp_path / "snn.pt")
    loaded = load(tmp_path / "snn.pt", ann)
    torch.manual_seed(0)
    expected = snn.run(x.to(dtype), 4)
    torch.manual_seed(0)
    assert torch.equal(loaded.run(x.to(dtype), 4), expected)
