import pytest
import torch

from sj_burst.utils.samples import join_samples, some_samples

LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "samples last": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "expanded": lambda x: x[:, :1].expand(-1, 3, -1, -1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("samples", [[3], [2, 2, 1], [1, 1]])
def test_samples_are_joined_and_found_again(layout, steps, samples):
    """Beside a loop over steps and samples."""
    torch.manual_seed(0)
    parts = [LAYOUTS[layout](torch.randn(steps * n, 3, 4, 5)) for n in samples]
    joined = join_samples(parts, samples)
    wanted = [
        x[t * n + i] for t in range(steps) for x, n in zip(parts, samples, strict=True) for i in range(n)
    ]
    assert torch.equal(joined, torch.stack(wanted))
    start = 0
    for part, n in zip(parts, samples, strict=True):
        some = some_samples(joined, sum(samples), range(start, start + n))
        assert torch.equal(some, part)
        start += n
        if layout in ("contiguous", "channels last"):
            for x in (joined, some):
                assert x[0].stride() == part[0].stride()
