"""One affine operation, or one maximum, between two layers of ReLUs: one network for each."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..entry import Collection, Entry

networks = Collection("operators")


class Between(nn.Module):
    """ReLU, an operation on ``[N, 8, 6, 6]``, a layer over what comes out, ReLU, a layer."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.operation, self.first = operation, nn.Conv2d(3, 8, 3, padding=1)
        features = operation(torch.randn(2, 8, 6, 6)).flatten(1).size(1)
        self.second, self.third = nn.Linear(features, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.operation(F.relu(self.first(x)))
        return self.third(F.relu(self.second(x.flatten(1))))


_G = torch.Generator().manual_seed(0)
_GRID = 2 * torch.rand(1, 5, 5, 2, generator=_G) - 1
_INDEX = torch.randint(6, (8, 6, 6), generator=_G)
_SQUARE = torch.randn(6, 6, generator=_G)
_MASK = torch.rand(6, 6, generator=_G) > 0.5

OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "adaptive_avg_pool": lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
    "adaptive_max_pool": lambda x: F.adaptive_max_pool2d(x, (3, 2)),
    "addcmul_of_constants": lambda x: torch.addcmul(x, _SQUARE, _SQUARE, value=0.5),
    "addmm": lambda x: torch.addmm(_SQUARE[0], x.flatten(1)[:, :6], _SQUARE),
    "alpha": lambda x: torch.add(x, x.flip(1), alpha=-0.5),
    "amax": lambda x: x.amax((1, 2)),
    "amin_keepdim": lambda x: torch.amin(x, dim=3, keepdim=True),
    "aminmax": lambda x: x.flatten(2).aminmax(dim=2)[1],
    "antialiased": lambda x: F.interpolate(x, size=(4, 4), mode="bilinear", antialias=True),
    "argument_by_name": lambda x: torch.flatten(input=x, start_dim=1),
    "avg_pool_with_divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "baddbmm": lambda x: torch.baddbmm(x[:, 0], _SQUARE.expand(x.size(0), 6, 6), x[:, 1]),
    "broadcast_to": lambda x: torch.broadcast_to(x.mean(1, keepdim=True), x.shape),
    "bicubic": lambda x: F.interpolate(x, scale_factor=1.5, mode="bicubic"),
    "cumsum": lambda x: x.cumsum(2),
    "cumsum_reversed": lambda x: torch.cumsum(x.flip(-1), dim=-1).flip(-1),
    "diagonal": lambda x: torch.diagonal(x, dim1=2, dim2=3),
    "diff": lambda x: torch.diff(x, dim=3),
    "div_by_constant": lambda x: torch.true_divide(x, 3).div_(2.0),
    "dsplit": lambda x: torch.cat(torch.tensor_split(x, 3, dim=3)[::-1], 3),
    "dstack": lambda x: torch.hstack([x, 2 * x]),
    "einsum": lambda x: torch.einsum("bchw,hk->bckw", x, _SQUARE),
    "ellipsis": lambda x: x[..., None, 1:-1, ::2],
    "expand": lambda x: x[:, :1].expand(-1, 4, -1, -1),
    "fft": lambda x: torch.view_as_real(torch.fft.rfft2(x, norm="ortho")),
    "fft_there_and_back": lambda x: torch.fft.ifft(torch.fft.fft(x)).real,
    "flip": lambda x: x.flip([2, 3]),
    "fliplr": lambda x: torch.fliplr(x),
    "fold": lambda x: F.fold(F.unfold(x, 2, stride=2), (6, 6), 2, stride=2),
    "gather": lambda x: x.gather(3, _INDEX.expand(x.size(0), -1, -1, -1)),
    "grid_sample": lambda x: F.grid_sample(x, _GRID.expand(x.size(0), -1, -1, -1), align_corners=False),
    "index_copy": lambda x: x.index_copy(1, torch.tensor([0, 1]), x[:, 2:4]),
    "kron": lambda x: torch.kron(x, torch.ones(1, 1, 2, 2)),
    "lerp": lambda x: torch.lerp(x, x.roll(1, 1), 0.3),
    "linear_of_constants": lambda x: F.linear(x, _SQUARE, _SQUARE[0]),
    "logsumexp_free_max": lambda x: x.flatten(2).max(-1).values,
    "lp_pool_of_one": lambda x: 4 * F.avg_pool2d(x, 2),
    "masked_fill": lambda x: x.masked_fill(_MASK, 0),
    "masked_select_by_index": lambda x: x[:, :, _MASK],
    "matmul": lambda x: torch.matmul(_SQUARE, x),
    "max_over_two": lambda x: torch.max(torch.max(x, dim=3)[0], dim=2)[0],
    "max_unpacked": lambda x: _first(*x.max(1)),
    "maximum": lambda x: torch.maximum(x, 1.5 * x.flip(2)),
    "maximum_of_scalar": lambda x: torch.clamp(x, 0.1, 0.9),
    "mean_of_all": lambda x: x.mean(dim=(-3, -2, -1)).unsqueeze(1).repeat(1, 4),
    "median_free_sum": lambda x: x.sum(dim=1, keepdim=True),
    "minimum": lambda x: torch.minimum(x, x.mean(1, keepdim=True).expand_as(x)),
    "mm_of_rows": lambda x: torch.mm(x.flatten(1)[:, :6], _SQUARE),
    "movedim": lambda x: x.movedim(1, -1).contiguous(),
    "multiply": lambda x: torch.multiply(x, 2).subtract(0.5),
    "mv": lambda x: x @ _SQUARE[0],
    "nansum": lambda x: torch.sum(x, [2, 3], True),
    "narrow": lambda x: x.narrow(2, 1, 3),
    "negative": lambda x: torch.negative(x),
    "pad_circular": lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"),
    "permute": lambda x: torch.permute(x, (0, 3, 1, 2)),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "positive": lambda x: +x,
    "repeat_interleave": lambda x: x.repeat_interleave(2, dim=1),
    "reshape_as": lambda x: x.reshape_as(torch.zeros(x.size(0), 8, 36)),
    "roll": lambda x: torch.roll(x, (1, 2), (2, 3)),
    "rot90": lambda x: torch.rot90(x, 1, (2, 3)),
    "rsub": lambda x: 1 - torch.rsub(x, 2),
    "scalar_first": lambda x: 3 - x,
    "scatter_add": lambda x: torch.zeros(x.size(0), 8, 6, 6).scatter_add(
        3, _INDEX.expand(x.size(0), -1, -1, -1), x
    ),
    "sign_free_abs": lambda x: (x - 0.5).abs(),
    "split_by_sizes": lambda x: torch.cat(torch.split(x, [3, 5], dim=1)[::-1], dim=1),
    "squeeze": lambda x: x.mean(2, keepdim=True).squeeze(2),
    "stack": lambda x: torch.stack((x, -x), dim=-1),
    "stack_of_unbind": lambda x: torch.stack(torch.unbind(x, 2)[::-1], 2),
    "swapaxes": lambda x: x.swapaxes(1, 2),
    "swapdims": lambda x: torch.swapdims(x, -1, 1),
    "take_along_dim": lambda x: torch.take_along_dim(x, _INDEX[None], 3),
    "tensordot": lambda x: torch.tensordot(x, _SQUARE, dims=([3], [0])),
    "tile": lambda x: x.tile(1, 1, 2, 1),
    "trace_by_einsum": lambda x: torch.einsum("bcii->bc", x),
    "transpose_attribute": lambda x: x.mT,
    "tril": lambda x: x.tril(),
    "triu": lambda x: torch.triu(x, 1),
    "unbind": lambda x: sum(x.unbind(1)),
    "unfold_method": lambda x: x.unfold(2, 3, 1).flatten(1),
    "unflatten": lambda x: x.unflatten(1, (2, 4)).sum(2),
    "unsqueeze": lambda x: x.unsqueeze(-1),
    "view_as": lambda x: x.view_as(x),
    "vstack_free_cat": lambda x: torch.concatenate([x, x.flip(1)], axis=1),
    "where_constant": lambda x: torch.where(_MASK, x, -x),
    "window_max": lambda x: x.unfold(3, 3, 3).max(-1)[0],
}


def _first(a: Tensor, _: Tensor) -> Tensor:
    return a


def _entry(name: str) -> Entry:
    return Entry(networks.library, name, lambda: Between(OPERATIONS[name]), (3, 6, 6))


networks.extend(map(_entry, OPERATIONS))
