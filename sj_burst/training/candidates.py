"""Networks that training found, of which none beats another."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["Candidate", "non_dominated"]


@dataclass(frozen=True)
class Candidate:
    """A network found in stage 2: the more accurate of two has the larger Ω, or it would be dropped.

    Attributes:
        lam: λ it was trained with.
        accuracy: of the clipped network (the limit for large T) on the validation samples that have a
            label of a class, in [0, 1]; there is at least one.
        omega: mean Ω of the layers on the validation set.
        epoch: after how many epochs of stage 2.
        state_dict: parameters and buffers; unchanged ones are shared among candidates.
    """

    lam: float
    accuracy: float
    omega: float
    epoch: int
    state_dict: dict[str, Tensor] = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """λ, accuracy in percent and Ω, fit for a file name."""
        return f"lam{self.lam:g}_acc{100 * self.accuracy:.2f}_omega{self.omega:.3f}"


def non_dominated(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that no other beats in accuracy and Ω at once, by falling Ω.

    Example:
        >>> some = [Candidate(0.1, a, o, 0, {}) for a, o in ((0.9, 7.0), (0.8, 5.0), (0.8, 6.0))]
        >>> [c.omega for c in non_dominated(some)]
        [7.0, 5.0]
    """
    kept: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (-c.accuracy, c.omega, c.epoch)):
        if not kept or candidate.omega < kept[-1].omega:
            kept.append(candidate)
    return kept
