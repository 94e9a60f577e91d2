"""What must hold of a GLEAN around any bank."""

import torch

from gleansr.models.glean import GLEAN

DEAD = ("fusion_skip", "bank.mapping", "bank.synthesis.to_rgb")


def assert_only_the_rgb_path_is_dead(model: GLEAN, lr: torch.Tensor) -> None:
    """No parameter of the bank's RGB path and mapping reaches the output, and every other one does."""
    before = model(lr)
    for name, parameter in model.named_parameters():
        if name.startswith(DEAD):
            parameter.data.normal_()
    assert torch.equal(model(lr), before)
    model.bank.requires_grad_(True)
    model.zero_grad()
    model(lr).square().sum().backward()
    unused = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert {name for name in unused if not name.startswith(DEAD)} == set()
