# %% A new flatness in twenty lines: the worst point of a cube, in which no weight changes by more than rho
import torch

from flatbayes import MLP, SAM, SWAG, Digits, Flatness, Plain, TrainingConfig, evaluate, fit
from flatbayes.core.norms import global_norm
from flatbayes.flatness.ascent import Perturbation, gradient_at_perturbation


class Cube(Flatness):
    gradients_per_step = 2  # one for the perturbation, one at the perturbed weights
    stationary_after = 0.0  # the loss is the same from the first step on, so samplers may use it

    def __init__(self, rho):
        self.rho = rho

    def __call__(self, closure, model, progress=None):
        # `gradient_at_perturbation` replays dropout, updates BatchNorm statistics once, and restores the weights,
        # also
        # after an exception.
        return gradient_at_perturbation(lambda weights, grads: compute_corner(grads, self.rho), closure, model)


def compute_corner(grads, rho):
    """The perturbation e that maximizes <g, e> with entries of at most rho: e = rho sign(g)."""
    norm = global_norm(grads)  # the perturbation is rho / norm times its directions; none if the norm is not finite
    return Perturbation([norm * grad.sign() for grad in grads], norm, rho)


# %% A test of the formula
perturbation = torch.cat(compute_corner([torch.tensor([0.3, -2.0]), torch.tensor([0.0])], rho=0.1).to_tensors())
assert torch.allclose(perturbation, torch.tensor([0.1, -0.1, 0.0]))

# %% Comparison with SAM: the corners of a cube of radius rho / sqrt(number of weights) have SAM's distance rho
data = Digits(train_size=300).load(seed=0)
num_weights = sum(weights.numel() for weights in MLP(data.input_shape, data.num_classes).parameters())
for name, flatness in {"plain": Plain(), "SAM": SAM(rho=0.2), "cube": Cube(rho=0.2 / num_weights**0.5)}.items():
    fitted = fit(MLP, data, SWAG(rank=5), flatness, TrainingConfig(epochs=30))
    metrics = evaluate(fitted, data.test).metrics
    print(f"{name}: accuracy {metrics['accuracy']:.3f}, NLL {metrics['nll']:.3f}")
