"""How many samples and steps run at a time."""

import pytest
import torch
from torch import fx

from sj_burst.simulation.plan import BYTES_ON_CPU, ROWS_ON_CPU, plan_run
from sj_burst.utils.inputs import Inputs


def values(*shapes, dtypes=None):
    """Values of one sample along a chain of operators."""
    graph = fx.Graph()
    node = graph.placeholder("x")
    nodes = [node]
    for _ in shapes[1:]:
        node = graph.call_function(torch.relu, (node,))
        nodes.append(node)
    dtypes = dtypes or [torch.float32] * len(shapes)
    return {
        n: torch.empty(1, *shape, dtype=d) for n, shape, d in zip(nodes, shapes, dtypes, strict=True)
    }


def plan(found, samples=100, steps=8, chunk=None, early_exit=None):
    x = Inputs(torch.zeros(samples, 1))
    return plan_run(x, found, steps, chunk, early_exit)


def test_what_an_operator_reads_and_writes_stays_small():
    # 250 000 and 50 000 bytes side by side: 106 rows, 8 steps of 13 samples; 8 parts of 100.
    found = plan(values((62_500,), (12_500,), (10,)))
    assert found == (13, 8)
    assert found.samples * found.chunk * 300_000 <= BYTES_ON_CPU


def test_values_that_never_meet_do_not_add_up():
    far = plan(values((62_500,), (10,), (62_500,)))
    near = plan(values((62_500,), (62_500,), (10,)))
    assert far.samples > near.samples


def test_counts_in_bytes_leave_room_for_more_samples():
    shapes = ((62_500,), (62_500,))
    floats = plan(values(*shapes))
    integers = plan(values(*shapes, dtypes=[torch.float32, torch.int8]))
    assert integers.samples > floats.samples


def test_parameters_are_not_of_a_sample():
    found = values((10,), (10,))
    last = list(found)[-1]
    with last.graph.inserting_before(last):
        weight = last.graph.get_attr("weight")
    last.args = (*last.args, weight)
    assert plan(found | {weight: torch.empty(BYTES_ON_CPU)}) == plan(found)


def test_a_sample_that_is_too_large_runs_alone_in_few_steps():
    huge = plan(values((BYTES_ON_CPU // 8,), (BYTES_ON_CPU // 8,)))
    assert huge == (1, 1)
    assert plan(values((10,), (10,)), samples=10_000).samples * 8 <= ROWS_ON_CPU


@pytest.mark.parametrize("options", [{"chunk": 3}, {"chunk": 3, "early_exit": 0.5}])
def test_steps_that_are_asked_for(options):
    assert plan(values((10,), (10,)), **options).chunk == 3


def test_early_exit_looks_after_every_step():
    assert plan(values((10,), (10,)), early_exit=0.5).chunk == 1


def test_networks_of_others_run_step_by_step():
    assert plan({}, samples=7) == (7, 1)
