"""Steps of every flatness on networks, optimizers and closures of all kinds: they work, or are refused in words."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatbayes.core import TrainingProgress, subset_batch
from flatbayes.flatness import ASAM, GSAM, SAM, Delayed, GaussianSmoothing, LookSAM
from flatbayes.posteriors import BSAM, SVGD
from support import FLAT, distribute_all_weights, innermost, named

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
IDS = torch.randint(0, 20, (32, 5), generator=torch.Generator().manual_seed(1))
Y = torch.arange(32) % 3

every_flat = pytest.mark.parametrize("flat", FLAT, ids=named(FLAT))


class WithUnused(nn.Module):
    """A layer that is never used, last in the order of registration, and one that is used in every second call."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.adapter, self.auxiliary, self.calls = nn.Linear(8, 8), nn.Linear(8, 2), 0

    def forward(self, x):
        hidden = torch.tanh(self.body(x))
        return self.head(self.adapter(hidden) if self.calls % 2 else hidden)


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


def make_closure(model, optimizer, inputs=X, *, seen=None, set_to_none=True, micro_batches=1):
    def closure():
        if seen is not None:
            seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
        optimizer.zero_grad(set_to_none=set_to_none)
        total = torch.zeros(())
        x_batch, y_batch = subset_batch(inputs, Y)
        for x, y in zip(x_batch.chunk(micro_batches), y_batch.chunk(micro_batches), strict=True):
            loss = F.cross_entropy(model(x), y) / micro_batches
            loss.backward()
            total += loss.detach()
        return total

    return closure


def run_steps(flat, model, optimizer, closure, steps=3, trained=None):
    progress = TrainingProgress(total_steps=steps)
    for _ in range(steps):
        with distribute_all_weights(model if trained is None else trained):
            loss = flat(closure, model, progress)()
        assert loss.isfinite()
        optimizer.step()
        progress.advance()
    return [p.detach() for p in model.parameters()]


def whole(flats):
    """Those that perturb every parameter, in a first step too."""
    return [f for f in flats if getattr(innermost(f), "params", "all") == "all"]


@pytest.mark.parametrize(("set_to_none", "micro_batches"), [(True, 1), (True, 2), (False, 1), (False, 2)])
@pytest.mark.parametrize("flat", whole(FLAT), ids=named(whole(FLAT)))
def test_weights_that_the_optimizer_does_not_have_are_as_if_frozen(flat, set_to_none, micro_batches):
    if isinstance(innermost(flat), GaussianSmoothing):
        pytest.skip("its noise is on all trainable weights, before there is any gradient")
    results = []
    for is_frozen in (True, False):
        model = make_network()
        model[0].requires_grad_(not is_frozen)
        if not is_frozen:
            model[0].weight.grad = torch.full_like(model[0].weight, 7.0)  # left from elsewhere
        optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
        closure = make_closure(model, optimizer, set_to_none=set_to_none, micro_batches=micro_batches)
        results.append(run_steps(flat, model, optimizer, closure, trained=model[2]))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@every_flat
def test_gradients_left_on_frozen_weights_do_not_matter(flat):
    results = []
    for left in (False, True):
        model = make_network()
        model[0].requires_grad_(False)
        if left:
            model[0].weight.grad = torch.full_like(model[0].weight, 7.0)
        optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
        results.append(run_steps(flat, model, optimizer, make_closure(model, optimizer), trained=model[2]))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("flat", whole(FLAT), ids=named(whole(FLAT)))
def test_gradients_may_be_zeroed_outside_the_closure(flat):
    results = []
    for is_inside in (True, False):
        model = make_network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        nothing = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
        closure = make_closure(model, optimizer if is_inside else nothing)
        optimizer.register_step_post_hook(lambda optimizer, *_: optimizer.zero_grad())
        results.append(run_steps(flat, model, optimizer, closure))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@every_flat
def test_sparse_gradients_are_those_of_a_dense_embedding_and_stay_sparse(flat):
    results = []
    for sparse in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.EmbeddingBag(20, 8, sparse=sparse), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        results.append(run_steps(flat, model, optimizer, make_closure(model, optimizer, IDS)))
        assert model[0].weight.grad.is_sparse is sparse  # as torch.optim.SparseAdam needs
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("flat", whole(FLAT), ids=named(whole(FLAT)))
def test_parameters_may_be_unused_in_some_steps_and_in_all(flat):
    torch.manual_seed(0)
    model = WithUnused()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    untouched = [p.detach().clone() for p in model.auxiliary.parameters()]
    progress = TrainingProgress(total_steps=4)
    for k in range(4):
        model.calls = k
        with distribute_all_weights(model):
            flat(make_closure(model, optimizer), model, progress)()
        assert (model.adapter.weight.grad is None) == (k % 2 == 0)
        assert model.auxiliary.weight.grad is None
        optimizer.step()
        progress.advance()
    assert all(torch.equal(*pair) for pair in zip(untouched, model.auxiliary.parameters(), strict=True))


@pytest.mark.parametrize("kind", [SAM, ASAM])
@pytest.mark.parametrize("params", ["last_layer", ["auxiliary.*"], ["auxiliary.*", "adapter.*"]])
def test_a_selection_without_gradients_is_refused_in_the_first_step(kind, params):
    model = WithUnused()
    closure = make_closure(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"params=.* selects .*auxiliary.weight.*computes no gradient.*head.weight"):
        kind(params=params)(closure, model)()
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("kind", [SAM, ASAM])
def test_a_selection_that_the_optimizer_does_not_have_is_refused(kind):
    model = make_network()
    closure = make_closure(model, torch.optim.SGD(model[2].parameters(), lr=0.1))
    model[2].weight.grad = torch.zeros_like(model[2].weight)
    with pytest.raises(ValueError, match="optimizer whose zero_grad the closure calls does not have them"):
        kind(params=["0.*"])(closure, model)()


@pytest.mark.parametrize("kind", [SAM, ASAM])
def test_a_selection_that_a_later_step_does_not_use_is_not_perturbed_in_it(kind):
    model = WithUnused()
    model.calls = 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen, progress = [], TrainingProgress()
    closure = make_closure(model, optimizer, seen=seen)
    kind(params=["adapter.*"])(closure, model, progress)()
    assert not torch.equal(seen[0]["adapter.weight"], seen[1]["adapter.weight"])
    progress.advance()
    model.calls = 2
    loss = kind(params=["adapter.*"])(closure, model, progress)()
    assert torch.equal(seen[2]["adapter.weight"], seen[-1]["adapter.weight"])
    grad = model.head.weight.grad.clone()
    assert torch.equal(closure(), loss)
    assert torch.equal(grad, model.head.weight.grad)


@every_flat
def test_lazy_modules_train_in_a_loop(flat):
    torch.manual_seed(0)
    model = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(3))
    if getattr(innermost(flat), "geometry", None) is not None:
        pytest.skip("the geometry of weights without values")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    closure = make_closure(model, optimizer)
    before, progress = None, TrainingProgress(total_steps=3)
    if isinstance(getattr(innermost(flat), "params", "all"), list):
        with pytest.raises(ValueError, match="has no shape yet. Run the model on a batch first"):
            flat(closure, model, progress)()
        return
    for _ in range(3):
        loss = flat(closure, model, progress)()
        assert loss.isfinite()
        assert before is None or all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
        optimizer.step()
        progress.advance()
        before = [p.detach().clone() for p in model.parameters()]
    assert model[1].num_batches_tracked == 3 * getattr(flat, "num_sub_batches", 1)


@every_flat
def test_a_gradient_of_another_precision_is_taken_in_that_of_the_weights(flat):
    model = make_network()
    model[2].bfloat16()
    model[1] = CastTo(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run_steps(flat, model, optimizer, make_closure(model, optimizer))
    assert [p.dtype for p in model.parameters()] == [torch.float32] * 2 + [torch.bfloat16] * 2


class CastTo(nn.Module):
    """Cast to a dtype."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, x):
        return x.to(self.dtype)


def returns(value):
    def change(closure):
        def changed():
            loss = closure()
            return value(loss)

        return changed

    return change


@every_flat
def test_the_loss_may_be_a_number_or_have_its_graph(flat):
    for change in (returns(float), returns(lambda loss: loss.clone().requires_grad_())):
        model = make_network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        closure = change(make_closure(model, optimizer))
        with distribute_all_weights(model):
            loss = flat(closure, model, TrainingProgress(step=0, total_steps=1))()
        if not isinstance(flat, Delayed):  # its plain part returns what the closure does
            assert isinstance(loss, torch.Tensor)
            assert not loss.requires_grad


MISTAKES = {
    "no loss": (make_network, returns(lambda _: None), TypeError, "must return the detached loss.*NoneType"),
    "no backward": (make_network, lambda _: lambda: torch.ones(()), RuntimeError, "call loss.backward()"),
    "frozen": (lambda: make_network().requires_grad_(False), None, ValueError, "no trainable parameters"),
    "complex": (lambda: nn.Linear(6, 3, dtype=torch.cfloat), None, ValueError, "Complex parameters.*weight, bias"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@every_flat
def test_a_closure_or_network_that_cannot_be_used_is_refused_in_plain_words(flat, mistake):
    make, change, error, message = MISTAKES[mistake]
    model = make()
    closure = make_closure(model, torch.optim.SGD(model.parameters(), lr=0.1))
    closure = closure if change is None else change(closure)
    flat = flat.flatness if isinstance(flat, Delayed) else flat  # it begins later
    if mistake == "no backward" and getattr(innermost(flat), "params", "all") != "all":
        error, message = ValueError, "computes no gradient"
    with distribute_all_weights(model), pytest.raises(error, match=message):
        flat(closure, model, TrainingProgress(total_steps=1))()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@every_flat
def test_a_loss_that_is_not_finite_leaves_the_weights(flat, value):
    model = make_network()
    before = copy.deepcopy(model.state_dict())

    def closure():
        model.zero_grad()
        x, y = subset_batch(X, Y)
        loss = F.cross_entropy(model(x), y) * value
        loss.backward()
        return loss.detach()

    with distribute_all_weights(model):
        loss = flat(closure, model, TrainingProgress(total_steps=1))()
    assert not loss.isfinite()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class MomentumEncoder(nn.Module):
    """A second encoder without gradients follows the first one in every forward pass of training, as in MoCo."""

    def __init__(self, update) -> None:
        super().__init__()
        self.encoder, self.key = nn.Linear(3, 2), nn.Linear(3, 2).requires_grad_(False)
        self.update = update

    def forward(self, x):
        with torch.no_grad():
            for key, param in zip(self.key.parameters(), self.encoder.parameters(), strict=True):
                self.update(key, param)
        return self.encoder(x) + self.key(x)


def assign_average(key, param):
    key.data = 0.9 * key.data + 0.1 * param.data


@pytest.mark.parametrize(
    "update", [lambda key, param: key.lerp_(param, 0.1), assign_average], ids=["in place", "data"]
)
@pytest.mark.parametrize(
    "flat",
    [SAM(rho=0.5), SAM(rho=0.5, ascent_steps=3), GSAM(rho=0.5), LookSAM(rho=0.5)],
    ids=lambda f: type(f).__name__,
)
def test_parameters_that_forward_changes_advance_once(flat, update):
    torch.manual_seed(0)
    model = MomentumEncoder(update)
    expected = [
        torch.lerp(k, p, 0.1) for k, p in zip(model.key.parameters(), model.encoder.parameters(), strict=True)
    ]

    def closure():
        model.zero_grad()
        loss = model(torch.ones(4, 3)).square().mean()
        loss.backward()
        return loss.detach()

    flat(closure, model, TrainingProgress(total_steps=2))()
    for key, value in zip(model.key.parameters(), expected, strict=True):
        torch.testing.assert_close(key, value)


def test_frozen_parameters_may_be_inference_tensors():
    with torch.inference_mode():
        backbone = nn.Linear(3, 3).requires_grad_(False)
    model = nn.ModuleList([backbone, nn.Linear(3, 2)])

    def closure():
        model[1].zero_grad()
        with torch.no_grad():
            features = model[0](torch.ones(4, 3))
        loss = model[1](features).square().mean()
        loss.backward()
        return loss.detach()

    SAM(rho=0.5)(closure, model)()
    assert model[1].weight.grad is not None


@pytest.mark.parametrize("posterior", [BSAM(), BSAM(num_sub_batches=2), SVGD(num_particles=2, rho=0.1)], ids=repr)
def test_they_advance_once_in_a_step_of_a_posterior_with_several_passes(posterior):
    model = MomentumEncoder(assign_average)
    before = [param.clone() for param in model.key.parameters()]
    state = posterior.init(model, lambda params: torch.optim.SGD(params, lr=0.0), num_data=4)
    passes = []

    def closure():
        model.zero_grad()
        (x,) = subset_batch(torch.ones(8, 3))
        loss = model(x).square().mean()
        passes.append(model.encoder.weight.detach().clone())
        loss.backward()
        return loss.detach()

    posterior.step(state, closure)
    assert len(passes) >= 2
    expected = torch.lerp(before[0], passes[0], 0.1)
    torch.testing.assert_close(model.key.weight.detach(), expected)
