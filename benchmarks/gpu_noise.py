"""The same random numbers on every device, so that a training on a GPU can be compared with one on the CPU.

Generators of different devices give different numbers. Inside `CommonNoise` every random operation on floating-point
tensors takes its numbers from one NumPy generator, in order, and copies them to the device of the result.
"""

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
NORMAL_FACTORIES = (aten.randn.default, aten.randn.generator, aten.randn_like.default)
UNIFORM_FACTORIES = (aten.rand.default, aten.rand.generator, aten.rand_like.default)


class CommonNoise(TorchDispatchMode):
    """Context in which normal, uniform and Bernoulli numbers, and dropout, do not depend on the device.

    Args:
        seed: Seed of all numbers inside.

    Attributes:
        num_values: Random numbers that were drawn.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.num_values = 0
        self._generator = np.random.default_rng(seed)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))  # also advances the generator of the device
        if func in NORMAL_FACTORIES:
            return result.copy_(self._draw(result))
        if func in UNIFORM_FACTORIES:
            return result.copy_(self._draw(result, is_normal=False))
        if func is aten.normal_.default:
            mean, std = (*args[1:], *(0.0, 1.0)[len(args) - 1 :])
            return result.copy_(self._draw(result).mul_(std).add_(mean))
        if func is aten.uniform_.default:
            low, high = (*args[1:], *(0.0, 1.0)[len(args) - 1 :])
            return result.copy_(self._draw(result, is_normal=False).mul_(high - low).add_(low))
        if func is aten.bernoulli_.float:
            return result.copy_(self._draw(result, is_normal=False) < (args[1] if len(args) > 1 else 0.5))
        if func is aten.native_dropout.default:  # the fused dropout of CUDA
            inputs, rate = args[:2]
            mask = self._draw(inputs, is_normal=False) < 1 - rate
            return inputs * mask / (1 - rate), mask
        return result

    def _draw(self, like: Tensor, *, is_normal: bool = True) -> Tensor:
        """Numbers in the shape, dtype and device of a tensor, rounded from float64."""
        self.num_values += like.numel()
        draw = self._generator.standard_normal if is_normal else self._generator.random
        return torch.from_numpy(np.asarray(draw(tuple(like.shape)))).to(like.device, like.dtype)
