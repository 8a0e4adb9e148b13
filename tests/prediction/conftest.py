import pytest
import torch

from flatbayes.data import Standardize
from flatbayes.flatness import Plain
from flatbayes.likelihoods import Categorical
from flatbayes.posteriors import MAP, SWAG, Ensemble, MCDropout
from flatbayes.prediction import FittedPosterior
from support import batch, network, train


@pytest.fixture
def make():
    """Build a fitted posterior on the network of the law tests."""

    def build(posterior, num_members=None):
        states = []
        for k in range(num_members or posterior.num_members):
            model = network()
            with torch.no_grad():
                model[9].weight.mul_(1 + k)
            states.append(train(posterior, Plain(), model=model)[0])
        for state in states:
            state.model.eval()
        inputs = [batch(k)[0] for k in range(3)]
        transform = Standardize.fit(torch.cat(inputs))
        return FittedPosterior(posterior, states, Categorical(3), transform, inputs, {"class_names": ["a", "b", "c"]})

    return build


POSTERIORS = [
    MAP(),
    MCDropout(),
    SWAG(rank=3),
    SWAG(rank=3, bfloat16=True),
    Ensemble(size=3),
    Ensemble(SWAG(rank=2), size=2),
]


@pytest.fixture(params=POSTERIORS, ids=lambda p: type(p).__name__)
def fitted(request, make):
    return make(request.param)
