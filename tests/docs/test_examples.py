"""The methods of one's own that the examples show keep the promises of the library's, and are as short as is said."""

import ast
import inspect
from pathlib import Path

import pytest
import torch
from torch import nn

from flatbayes import Plain, Posterior

EXAMPLES = Path(__file__).parents[2] / "examples"


def first_cell(name):
    """The names that the first cell of an example defines, and the lines of each of its definitions."""
    code = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").split("\n# %%")[0]
    names = {"__name__": name}
    exec(compile(code, name, "exec"), names)
    lines = {}
    for node in ast.parse(code).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            lines[node.name] = len([line for line in code.splitlines()[first - 1 : node.end_lineno] if line.strip()])
    return names, lines


def network():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


def closure_of(model):
    x, y = torch.randn(12, 5), torch.arange(12) % 3

    def closure():
        model.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss.detach()

    return closure


def values(model):
    return torch.cat([param.detach().flatten() for param in model.parameters()])


def gradient(model):
    return torch.cat([param.grad.flatten() for param in model.parameters()])


def test_a_flatness_in_twenty_lines():
    names, lines = first_cell("new_flatness")
    assert sum(lines.values()) <= 20
    model = network()
    closure, before = closure_of(model), values(model)
    grads = {}
    for rho in (0.0, 0.05):
        names["Cube"](rho)(closure, model)()
        grads[rho] = gradient(model)
    Plain()(closure, model)()
    assert torch.equal(grads[0.0], gradient(model))
    assert not torch.equal(grads[0.05], gradient(model))
    assert torch.equal(values(model), before)


def test_a_posterior_in_forty_lines():
    names, lines = first_cell("new_posterior")
    assert lines["SnapshotEnsemble"] <= 40
    posterior = names["SnapshotEnsemble"](max_snapshots=2)
    model = network()
    state = posterior.init(model, posterior.default_optimizer, num_data=12)
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(RuntimeError, match="at least 1"), posterior.draw(state, generator):
        pass
    seen, closure = [], closure_of(model)
    for _ in range(3):
        posterior.step(state, Plain()(closure, model))
        posterior.collect(state)
        seen.append(values(model))
    drawn = []
    for _ in range(20):
        with posterior.draw(state, generator) as network_drawn:
            drawn.append(next(k for k, kept in enumerate(seen) if torch.equal(kept, values(network_drawn))))
    assert set(drawn) == {1, 2}  # the last two
    assert torch.equal(values(model), seen[-1])


def guide_namespace(block):
    """The names that one code block of the contributors' guide defines."""
    text = (EXAMPLES.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    names = {"__name__": "contributing"}
    exec(text.split("```python\n")[block].split("```")[0], names)
    return names


def test_the_posterior_of_the_contributors_guide_is_complete():
    found = [
        thing for thing in guide_namespace(1).values() if inspect.isclass(thing) and issubclass(thing, Posterior)
    ]
    assert [inspect.isabstract(thing) for thing in found if thing is not Posterior] == [False]


@pytest.mark.parametrize("norm", ["one network", "vectorized"])
def test_the_flatness_of_the_contributors_guide_perturbs_every_weight_by_rho(norm):
    names = guide_namespace(2)
    grads = [torch.randn(2, 3, 4), torch.randn(2, 5)]
    if norm == "vectorized":
        names["global_norm"] = lambda grads: torch.stack(
            [torch.cat([g[k].flatten() for g in grads]).norm() for k in (0, 1)]
        )
    perturbation = names["sign_perturbation"](grads, 0.1)
    for direction, grad in zip(perturbation.directions, grads, strict=True):
        scale = names["broadcast_per_network"](0.1 / perturbation.norm, direction)
        torch.testing.assert_close(scale * direction, 0.1 * grad.sign())


def test_the_data_source_of_the_contributors_guide_loads():
    splits = guide_namespace(3)["TwoMoons"](size=100).load(seed=0)
    assert splits.train.inputs.shape[1:] == (2,)
    assert splits.class_names == ("upper", "lower")
