"""What an activation with a trained upper bound has to offer for a conversion."""

from torch import Tensor, nn

__all__ = ["BoundedActivation"]


class BoundedActivation(nn.Module):
    r"""Base of activations with output in [0, k], whose bound k training has fitted.

    Tracing keeps such a module whole. ``BurstRecipe`` checks the graph with the module in place, and
    converts it as

    .. math::
        \mathrm{clip}(x, 0, k), \qquad \theta = k / \Gamma

    which it equals, or which is its mean when the input is uniform within a quantum.

    Example:
        >>> import torch
        >>> class Three(BoundedActivation):
        ...     @property
        ...     def bound(self):
        ...         return torch.tensor(3.0)
        ...     def forward(self, x):
        ...         return x.clamp(0, 3)
        >>> Three().bound.item()
        3.0
    """

    @property
    def bound(self) -> Tensor:
        """The bound k > 0, a scalar in the units of the activation."""
        raise NotImplementedError(f"{type(self).__name__} does not define its bound")
