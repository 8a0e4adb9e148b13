"""A network about which nothing changes but its weights."""

from collections.abc import Callable

from torch import Tensor, nn

from flatbayes.core.buffers import eval_mode


class FrozenNetwork(nn.Module):
    """The network in eval mode, in whatever mode it is asked, with what inputs go through before it.

    Running statistics stay what they are, also while a posterior is fitted around the network; so everything that
    its draws share was fixed with it.

    Args:
        network: The network.
        transform: Applied to inputs on their way to it.
    """

    def __init__(self, network: nn.Module, transform: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.network = network
        self.transform = transform

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        ready = x if self.transform is None else self.transform(x)
        weight = next(self.network.parameters())
        ready = ready.to(weight.device, weight.dtype if ready.is_floating_point() else ready.dtype)
        with eval_mode(self.network):
            outputs: Tensor = self.network(ready)
        return outputs
