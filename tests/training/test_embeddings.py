"""Sparse gradients of embeddings, and Laplace with models of transformers, in `fit`."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from flatbayes import fit, posteriors
from flatbayes.flatness import SAM
from flatbayes.likelihoods import Categorical
from flatbayes.training import TrainingConfig

IDS = torch.randint(1, 9, (12, 5), generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 3


class Bag(nn.Module):
    """Mean of embeddings, and a linear layer."""

    def __init__(self, sparse):
        super().__init__()
        self.embedding = nn.Embedding(9, 4, sparse=sparse)
        self.dropout, self.head = nn.Dropout(0.2), nn.Linear(4, 3)

    def forward(self, ids):
        return self.head(self.dropout(self.embedding(ids).mean(1)))


POSTERIORS = [
    posteriors.MAP(),
    posteriors.SWAG(rank=2),
    posteriors.SWAG(rank=0, params="no_biases", prior_precision=1.0),
    posteriors.SGLD(prior_precision=1.0),
    posteriors.SGHMC(prior_precision=1.0),
    posteriors.SGVB(),
    posteriors.IVON(),
    posteriors.MCDropout(),
    posteriors.Laplace("last_layer", prior_precision=1.0),
    posteriors.Laplace("diag", "sampled", prior_precision=1.0),
    posteriors.Ensemble(posteriors.SWAG(rank=2), 2),
]


def fit_bag(posterior, *, sparse):
    loader = DataLoader([*zip(IDS, LABELS, strict=True)], batch_size=4, generator=torch.Generator())
    likelihood = Categorical(3)
    return fit(lambda: Bag(sparse), loader, posterior, SAM(0.1), TrainingConfig(epochs=3), likelihood=likelihood)


@pytest.mark.parametrize("posterior", POSTERIORS, ids=str)
def test_sparse_gradients_give_the_numbers_of_dense_ones(posterior):
    dense, sparse = (fit_bag(posterior, sparse=sparse) for sparse in (False, True))
    torch.testing.assert_close(sparse.predict(IDS, 3).mean, dense.predict(IDS, 3).mean, rtol=0, atol=1e-6)
    for name, values in dense.states[0].model.state_dict().items():
        torch.testing.assert_close(sparse.states[0].model.state_dict()[name], values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("posterior", [posteriors.LRT(), posteriors.Laplace("kron", prior_precision=1.0)], ids=str)
def test_posteriors_of_linear_layers_refuse_embeddings_in_words(posterior):
    with pytest.raises(ValueError, match="Embedding"):
        fit_bag(posterior, sparse=True)
