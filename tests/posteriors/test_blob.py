"""BLoB: flipout on inner factors, the KL divergence of N(M, G⁴), its published weights, the optimum of the bound."""

import math

import pytest
import torch
from torch import nn

from flatbayes import SAM, SGVB, BLoB, Categorical, FittedPosterior, Plain, TrainingConfig, fit
from flatbayes.posteriors.blob import cyclical_kl_weight
from flatbayes.posteriors.variational import gaussian_kl
from flatbayes.posteriors.variational_layers import flipout_activations
from flatbayes.training.presets import make_blob


class Adapted(nn.Module):
    """A frozen linear layer with an adapter, named as in torchtune."""

    def __init__(self, num_inputs=3, num_outputs=2, rank=2):
        super().__init__()
        self.base = nn.Linear(num_inputs, num_outputs).requires_grad_(False)
        self.lora_a, self.lora_b = nn.Linear(num_inputs, rank, bias=False), nn.Linear(rank, num_outputs, bias=False)

    def forward(self, x):
        return self.base(x) + self.lora_b(self.lora_a(x))


def make_state(model, posterior, make_optimizer=lambda params: torch.optim.SGD(params, lr=0.1), num_data=10):
    state = posterior.init(model, make_optimizer, num_data)
    state.model.train()
    return state


def make_closure(model, loss_fn):
    def closure():
        model.zero_grad()
        loss = loss_fn(model)
        loss.backward()
        return loss.detach()

    return closure


def test_only_inner_factors_have_a_distribution():
    state = make_state(Adapted(), BLoB(initial_root=0.08))
    roots = state.statistics["raw_scale.lora_a.weight"]
    assert set(state.statistics) == {"raw_scale.lora_a.weight", "step"}
    assert 0.08 / math.sqrt(2) <= float(roots.min()) < float(roots.max()) <= 0.08
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    with BLoB().draw(state, torch.Generator().manual_seed(0)) as network:
        drawn = {name: value.clone() for name, value in network.state_dict().items()}
    assert [name for name in drawn if not torch.equal(drawn[name], before[name])] == ["lora_a.weight"]
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)) * roots.square()
    torch.testing.assert_close(drawn["lora_a.weight"] - before["lora_a.weight"], noise, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("by_token", [True, False])
def test_flipout_gives_every_token_the_weights_of_one_sample_with_signs(by_token):
    """With s and r of a token, ((x s) Eᵀ) r is x (E r sᵀ)ᵀ: an entry of E keeps its size, whatever the signs."""
    inputs, weight = torch.eye(3).expand(4, 3, 3).contiguous(), torch.zeros(2, 3)
    torch.manual_seed(0)
    noise = flipout_activations(
        nn.functional.linear, inputs, weight, None, torch.full((2, 3), 0.3), None, by_token=by_token
    )
    torch.manual_seed(0)
    sample = 0.3 * torch.randn(2, 3)
    torch.testing.assert_close(noise.abs(), sample.T.abs().expand(4, 3, 2))
    signs = noise.sign() * sample.T.sign()  # s_i r_o of each example and token
    ranks = torch.linalg.matrix_rank(signs)
    assert bool((ranks == 1).all()) is not by_token  # signs of an example are an outer product


def test_gradients_are_those_of_the_loss_and_the_kl_divergence():
    """With a loss that does not depend on A the gradients are those of kl_weight KL(N(M, G⁴) || N(0, prior_std²))."""
    posterior = BLoB(prior_std=0.3, temperature=0.7)
    state = make_state(Adapted().double(), posterior, num_data=20)
    mean, root = state.model.lora_a.weight, state.statistics["raw_scale.lora_a.weight"]
    values = [mean.detach().clone().requires_grad_(), root.detach().clone().requires_grad_()]
    kl = gaussian_kl(values[0].flatten(), values[1].square().flatten(), torch.zeros(6).double(), 1 / 0.3**2)
    expected = torch.autograd.grad(0.7 / 20 * kl, values)
    posterior.step(state, make_closure(state.model, lambda model: 0.0 * model(torch.ones(4, 3).double()).sum()))
    torch.testing.assert_close(mean.grad, expected[0])
    torch.testing.assert_close(root.grad, expected[1])


def test_a_step_on_the_kl_divergence_of_its_own():
    """Published: M and G descend on pi_i KL by SGD after the optimizer, whose gradient is that of the loss alone."""
    posterior = BLoB(kl_lr=0.02, kl_cycle=2)
    state = make_state(Adapted().double(), posterior)
    mean, root = state.model.lora_a.weight, state.statistics["raw_scale.lora_a.weight"]
    expected = [mean.detach().clone(), root.detach().clone()]
    for weight in (1 / 7, 2 / 7, 1 / 7):
        values = [value.requires_grad_() for value in expected]
        kl = gaussian_kl(values[0].flatten(), values[1].square().flatten(), torch.zeros(6).double(), 25.0)
        grads = torch.autograd.grad(weight * kl, values)
        expected = [(value - 0.02 * grad).detach() for value, grad in zip(values, grads, strict=True)]
        posterior.step(state, make_closure(state.model, lambda model: 0.0 * model(torch.ones(4, 3).double()).sum()))
        torch.testing.assert_close(mean.detach(), expected[0])
        torch.testing.assert_close(root.detach(), expected[1])


def test_published_weights_of_the_kl_divergence():
    weights = [cyclical_kl_weight(step, 5) for step in range(10)]
    assert weights[:5] == weights[5:] == [2**i / 63 for i in range(5)]
    assert sum(weights[:5]) == pytest.approx(31 / 63)
    assert cyclical_kl_weight(999, 1000) == 0.25  # 2^1001 is no float times anything large
    assert make_blob(1000, 4, gamma=math.pi).kl_cycle == 25_000


@pytest.mark.parametrize("flatness", [Plain(), SAM(rho=0.0)])
def test_optimum_of_the_bound(flatness):
    """Loss 3 (B A - 1)² / 2 with B = 2 fixed: q has precision n 12 / T + 1 / s², and mean n 6 / T over it."""
    model = Adapted(1, 1, 1)
    for name, value in (("base.weight", 0.0), ("base.bias", 0.0), ("lora_b.weight", 2.0)):
        nn.init.constant_(model.get_parameter(name).requires_grad_(False), value)
    num_data, temperature, prior_std = 10, 2.0, 0.1
    posterior = BLoB(prior_std=prior_std, temperature=temperature, initial_root=0.3, signs="examples")
    torch.manual_seed(0)
    state = make_state(model, posterior, lambda params: torch.optim.Adam(params, lr=0.01), num_data)
    inputs = torch.ones(512, 1)  # examples with signs in both directions: the noise of the mean cancels
    closure = make_closure(state.model, lambda network: 1.5 * (network(inputs) - 1).square().mean())
    history = []
    for step in range(1500):
        posterior.step(state, flatness(closure, state.model))
        if step >= 500:
            root = state.statistics["raw_scale.lora_a.weight"]
            history.append((float(state.model.lora_a.weight.detach()), float(root.detach()) ** 2))
    precision = num_data * 12 / temperature + 1 / prior_std**2
    mean, std = torch.tensor(history).mean(0).tolist()
    assert mean == pytest.approx(num_data * 6 / temperature / precision, rel=0.03)
    assert std == pytest.approx(precision**-0.5, rel=0.05)


@pytest.mark.parametrize("flatness", [Plain(), SAM(rho=0.05)])
def test_layers_of_peft(flatness, tmp_path):
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=2, target_modules=["0"], modules_to_save=["2"])

    def make_model():
        torch.manual_seed(0)
        return peft.get_peft_model(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), settings)

    inputs = torch.randn(60, 4, generator=torch.Generator().manual_seed(1))
    config = TrainingConfig(epochs=5, batch_size=20, num_validations=0)
    fitted = fit(
        make_model(), (inputs, (inputs[:, 0] > 0).long()), BLoB(), flatness, config, likelihood=Categorical(2)
    )
    statistics = fitted.states[0].statistics
    assert [name for name in statistics if name != "step"] == ["raw_scale.base_model.model.0.lora_A.default.weight"]
    prediction = fitted.predict(inputs, num_draws=5)
    assert float(prediction.mutual_information.max()) > 0
    again = FittedPosterior.load(fitted.save(tmp_path, with_frozen=False), make_model)
    assert torch.equal(again.predict(inputs, num_draws=5).log_probs, prediction.log_probs)


@pytest.mark.parametrize("kind", ["LoRA of an embedding", "AdaLoRA"])
def test_factors_that_are_no_layers_are_refused(kind):
    peft = pytest.importorskip("peft")
    if kind == "AdaLoRA":
        layer, config = nn.Linear(10, 4), peft.AdaLoraConfig(target_modules=["0"], init_r=2, total_step=9)
    else:
        layer, config = nn.Embedding(10, 4), peft.LoraConfig(r=2, target_modules=["0"])
    model = peft.get_peft_model(nn.Sequential(layer), config)
    with pytest.raises(ValueError, match="BLoB adds noise to factors that are linear.* 1 of 1 are not"):
        BLoB().init(model, None, 10)
    SGVB(params=["*lora*"]).init(model, None, 10)


def test_messages_about_a_network_without_adapters_name_the_method():
    with pytest.raises(ValueError, match="BLoB adds noise to layers of type"):
        BLoB().init(nn.Sequential(nn.LayerNorm(3)), None, 10)
    with pytest.raises(ValueError, match="BLoB supports layers of type"):
        BLoB().init(nn.Sequential(nn.LSTM(3, 3), nn.Linear(3, 3)), None, 10)


def test_values_are_checked():
    for options in ({"prior_std": 0.0}, {"initial_root": -1.0}, {"kl_lr": math.inf}, {"kl_cycle": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            BLoB(**options)
