"""Give activations and poolings one row a sample where frames or patches are folded into the batch."""

from typing import Any

from torch import Tensor, fx

from ..modules.pooling import WINDOWED_POOLS
from .operators import ACTIVATIONS, samples_apart, samples_together
from .trace import is_module

__all__ = ["one_row_a_sample"]


def one_row_a_sample(gm: fx.GraphModule, values: dict[fx.Node, Any], samples: int) -> None:
    """Where a neuron sees k rows of every sample, as of ``x.flatten(0, 1)``, let it see one, in place.

    Time steps are folded into the batch, so that what carries state has to know its samples. An
    activation acts on every number, and max-pooling on every channel: the k rows may stand in a
    dimension of their own, or beside each other as channels. Whether the rows of a sample do follow
    each other is found out by :func:`~sj_burst.graph.check.check_batch_independent`.

    Args:
        gm: a standardized graph.
        values: of its nodes for an example.
        samples: N of that example.
    """
    source = next(n for n in gm.graph.nodes if n.op == "placeholder")
    for node in list(gm.graph.nodes):
        pools = is_module(gm, node, WINDOWED_POOLS)
        x = values.get(node.args[0]) if node.args else None
        if not (pools or is_module(gm, node, ACTIVATIONS)) or not isinstance(x, Tensor):
            continue
        dims = int(type(gm.get_submodule(str(node.target))).__name__[-2]) + 2 if pools else 2
        if x.dim() < dims or len(x) == samples or len(x) % samples:
            continue
        with gm.graph.inserting_before(node):
            count = gm.graph.call_method("size", (source, 0))
            apart = gm.graph.call_function(samples_apart, (node.args[0], count, pools))
        node.args = (apart,)
        with gm.graph.inserting_after(node):
            together = gm.graph.call_function(samples_together, (node, x.shape[1], pools))
        node.replace_all_uses_with(together, delete_user_cb=lambda user, made=together: user is not made)
        values[together] = values[node]
        for made in (count, apart, together):
            made.meta = dict(node.meta)
    gm.recompile()
