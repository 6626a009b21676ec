"""An interrupt leaves networks as they were: fresh state, no hooks, modes and flags."""

import pytest
import torch

from sj_burst import fit_early_exit, inactivated_share, report, simulate, synops
from sj_burst.analysis import layer_report, layers
from tests.networks import vgg

X = torch.rand(24, 2, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.zeros(24, dtype=torch.long)
USES = {
    "simulate": lambda snn, ann: simulate(snn, [X], 60, chunk=10, reference=ann, progress=False),
    "synops": lambda snn, ann: synops(snn, [X], 60),
    "report": lambda snn, ann: report(snn, ann, [X, X], 60),
    "inactivated_share": lambda snn, ann: inactivated_share(snn, ann, [X], 60),
    "fit_early_exit": lambda snn, ann: fit_early_exit(snn, [(X, Y)], 60),
}


def interrupt(*_, **__):
    raise KeyboardInterrupt


def check_untouched(snn, ann):
    assert snn.training and ann.training
    for node in snn.neurons().values():
        assert node.v is None and node.sent is None and node.time_fold is None
        assert node.step_mode == "s"
        assert not node.count_spikes and node.spike_counts is None
    assert not any(module._forward_hooks for module in [*snn.modules(), *ann.modules()])


@pytest.fixture
def pair(convert):
    ann = vgg()
    return convert(ann, [X], calibration="none").train(), ann.train()


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("when", ["first", "middle", "last"])
def test_interrupted_while_a_batch_runs(pair, use, when):
    snn, ann = pair
    last_layer = snn.graph.get_submodule("9")  # all neurons have a state by then
    calls, stop = 0, -1

    def count(*_):
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt

    handle = last_layer.register_forward_hook(count)
    USES[use](snn, ann)  # what it learns of the network's sizes it keeps
    calls = 0
    USES[use](snn, ann)
    assert calls > 2
    stop, calls = {"first": 1, "middle": calls // 2, "last": calls}[when], 0
    with pytest.raises(KeyboardInterrupt) as caught:
        USES[use](snn, ann)
    handle.remove()
    check_untouched(snn, ann)
    del caught


@pytest.mark.parametrize("place", ["between batches", "in the loader"])
def test_a_report_interrupted_elsewhere(pair, monkeypatch, place):
    snn, ann = pair
    loader = [X]
    if place == "between batches":
        monkeypatch.setattr(layer_report.LayerTotals, "add", interrupt)
    else:

        class Loader:
            calls = 0

            def __iter__(self):
                self.calls += 1
                yield X
                if self.calls > 1:  # the first gives an example
                    interrupt()

        loader = Loader()
    with pytest.raises(KeyboardInterrupt) as caught:
        report(snn, ann, loader, 60)
    check_untouched(snn, ann)
    del caught


def test_a_share_interrupted_between_batches(pair, monkeypatch):
    snn, ann = pair
    monkeypatch.setattr("sj_burst.analysis.inactivated.fires_inactivated", interrupt)
    with pytest.raises(KeyboardInterrupt) as caught:
        inactivated_share(snn, ann, [X], 4)
    check_untouched(snn, ann)
    del caught
    found = layers.layer_rates(snn, ann, [X], 4)
    next(found)
    found.close()
    check_untouched(snn, ann)
