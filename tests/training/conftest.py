import pytest
from torch.optim.optimizer import register_optimizer_step_pre_hook


@pytest.fixture
def learning_rates():
    """The learning rate of every step that an optimizer makes during the test."""
    rates = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, args, kwargs: rates.append(float(optimizer.param_groups[0]["lr"]))
    )
    yield rates
    hook.remove()
