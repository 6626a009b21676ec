"""Gram matrices of windows against unfolded patches."""

import pytest
import torch
from torch import nn

from sj_burst.conversion import gram as gram_module

CASES = {
    "3x3": (nn.Conv2d(2, 3, 3, padding=1), (4, 2, 6, 5)),
    "not padded": (nn.Conv2d(2, 3, (2, 3)), (3, 2, 6, 5)),
    "dilated": (nn.Conv2d(2, 4, 3, padding=3, dilation=(2, 3)), (3, 2, 7, 6)),
    "grouped": (nn.Conv2d(4, 4, 3, padding=2, groups=2), (3, 4, 5, 5)),
    "depthwise": (nn.Conv2d(3, 3, 5, padding=2, groups=3), (3, 3, 4, 7)),
    "larger than the image": (nn.Conv2d(2, 2, 7, padding=3), (3, 2, 3, 2)),
    "padded to the same": (nn.Conv2d(2, 3, (1, 3), padding="same", dilation=2), (3, 2, 4, 5)),
    "long": (nn.Conv1d(2, 3, 40, padding=20), (4, 2, 90)),
    "long, dilated": (nn.Conv1d(2, 2, 9, padding=5, dilation=7), (4, 2, 60)),
    "long, strided": (nn.Conv1d(2, 3, 21, stride=4, padding=9), (4, 2, 95)),
    "long, strided, dilated": (nn.Conv1d(2, 3, 15, stride=6, padding=8, dilation=4), (3, 2, 90)),
    "wide, strided": (nn.Conv2d(2, 3, (2, 9), stride=(1, 2), padding=3), (3, 2, 5, 20)),
    "flat, strided": (nn.Conv2d(2, 3, (1, 9), stride=(2, 2)), (3, 2, 5, 20)),
    "strided": (nn.Conv2d(2, 3, 3, 2, 1), (4, 2, 7, 6)),
    "strided, without a window": (nn.Conv2d(4, 2, 1, 2, groups=2), (4, 4, 7, 6)),
    "padded, without a window": (nn.Conv2d(2, 3, 1, padding=1), (3, 2, 4, 4)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("at_once", [256, 2**27])
def test_against_patches(monkeypatch, case, dtype, at_once):
    monkeypatch.setattr(gram_module, "_PATCH_BYTES", at_once)
    module, shape = CASES[case]
    groups = module.groups
    x = torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got = gram_module.gram(module, x, groups)
    x = x.double()
    padding = (0, 2) if module.padding == "same" else module.padding
    is_line = isinstance(module, nn.Conv1d)
    for number, part in enumerate(x.chunk(groups, 1)):
        picture = part.unsqueeze(2) if is_line else part
        line = ((1,), (1,), (0,), (1,)) if is_line else ((), (), (), ())
        options = (module.kernel_size, module.dilation, padding, module.stride)
        columns = nn.functional.unfold(
            picture, *(a + tuple(b) for a, b in zip(line, options, strict=True))
        )
        u = columns.movedim(1, -1).flatten(0, 1)
        u = torch.cat([u, torch.ones(len(u), 1)], 1)
        expected = u.mT @ u
        tolerance = 1e-5 if dtype == torch.float32 else 1e-12
        assert (got[number] - expected).abs().max() <= tolerance * expected.abs().max()


def test_patches_of_a_linear_map_on_sequences():
    x = torch.rand(3, 4, 5)
    u = gram_module.patches(nn.Linear(5, 2), x, 1)
    assert torch.equal(u[0], x.flatten(0, 1))
