# %% A flatness of your own in twenty lines: the worst point of a cube, in which no weight moves further than rho
import torch

from flatbayes import MLP, SAM, SWAG, Digits, Flatness, Plain, TrainingConfig, evaluate, fit
from flatbayes.core.norms import global_norm
from flatbayes.flatness.ascent import Perturbation, gradient_at_perturbation


class Cube(Flatness):
    gradients_per_step = 2  # one to aim with, one at the end
    stationary_after = 0.0  # the worst loss in the cube, to first order: any posterior may use it

    def __init__(self, rho):
        self.rho = rho

    def __call__(self, closure, model, progress=None):
        # `gradient_at_perturbation` replays dropout, lets BatchNorm move once, and restores everything, also after
        # an exception.
        return gradient_at_perturbation(lambda weights, grads: corner(grads, self.rho), closure, model)


def corner(grads, rho):
    """The e that maximises <g, e> if no entry may exceed rho: e = rho sign(g)."""
    norm = global_norm(grads)  # an Offset is rho / norm times its directions; it is skipped if the norm is not finite
    return Perturbation([norm * grad.sign() for grad in grads], norm, rho)


# %% The formula has a test, as every formula of flatbayes has
offset = torch.cat(corner([torch.tensor([0.3, -2.0]), torch.tensor([0.0])], rho=0.1).to_tensors())
assert torch.allclose(offset, torch.tensor([0.1, -0.1, 0.0]))

# %% Beside SAM: a cube of the radius rho / sqrt(number of weights) has corners as far away as SAM goes
data = Digits(train_size=300).load(seed=0)
size = sum(weights.numel() for weights in MLP(data.input_shape, data.num_classes).parameters())
for name, flatness in {"plain": Plain(), "SAM": SAM(rho=0.2), "cube": Cube(rho=0.2 / size**0.5)}.items():
    fitted = fit(MLP, data, SWAG(rank=5), flatness, TrainingConfig(epochs=30))
    metrics = evaluate(fitted, data.test.inputs, data.test.targets).metrics
    print(f"{name}: accuracy {metrics['accuracy']:.3f}, NLL {metrics['nll']:.3f}")
