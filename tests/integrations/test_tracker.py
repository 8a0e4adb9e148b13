"""The tracker records which buffers training updates, so that draws leave frozen normalization layers alone."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flatbayes.core import TrainingProgress
from flatbayes.flatness import Plain
from flatbayes.integrations.fitted_posteriors import make_fitted_posterior
from flatbayes.integrations.tracker import TrainingTracker
from flatbayes.integrations.tracker_config import TrackerConfig
from flatbayes.likelihoods import Categorical
from flatbayes.posteriors import MAP, SGVB, SWAG
from flatbayes.prediction import FittedPosterior
from flatbayes.training import CollectionConfig
from flatbayes.training.trial import NetworkWarning


class Wrapper(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def start_tracking(network, posterior=SWAG(rank=2), **options):
    collection = CollectionConfig(start_fraction=0.0, snapshots_per_epoch=3)
    config = TrackerConfig(posterior, collection, num_data=9, **options)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    return TrainingTracker.start_tracking(config, network, optimizer, TrainingProgress(total_steps=6), 3, 9)


def take_steps(tracker, count):
    network, x = tracker.steps.state.model, torch.randn(9, 4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(count):
        network.train()
        network[1].eval()
        network(x).square().mean().backward()
        optimizer.step()
        tracker.advance()
    return x


def test_frozen_norms_keep_their_statistics_also_in_a_wrapper_and_after_a_resume(tmp_path):
    network = make_network()
    tracker = start_tracking(network)
    x = take_steps(tracker, 4)
    resumed = start_tracking(network)
    resumed.load_state_dict(tracker.state_dict())
    for source in (tracker, resumed):
        fitted = make_fitted_posterior(source, Categorical(3), flatness=Plain(), wrap=Wrapper, statistics_inputs=[x])
        fitted.save(tmp_path)
        for sampler in (fitted, FittedPosterior.load(tmp_path, lambda: Wrapper(make_network()))):
            sampler.norm_statistics.clear()
            with sampler.sampled_network((0, 0, 0)) as draw:
                assert torch.equal(draw.model[1].running_mean, torch.zeros(5))
                hidden = draw.model[1](draw.model[0](x))
                torch.testing.assert_close(draw.model[2].running_mean, hidden.mean(0))


@pytest.mark.parametrize("posterior", [SWAG(rank=2), SGVB()], ids=["SWAG", "SGVB"])
def test_parameters_that_are_unfrozen_in_training_are_refused(posterior):
    network = make_network()
    network[0].requires_grad_(False)
    tracker = start_tracking(network, posterior)
    tracker.check_parameters()
    network[0].requires_grad_(True)
    with pytest.raises(ValueError, match=r"unfrozen or added: \['0.weight', '0.bias'\]\), and \w+ has"):
        tracker.check_parameters()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_trained_weights_of_low_precision_give_a_warning(dtype, recwarn):
    network = make_network().to(dtype)
    with pytest.warns(NetworkWarning, match=f"are {str(dtype)[6:]}, .* and use autocast to bfloat16 where"):
        start_tracking(network, MAP())
    recwarn.clear()
    start_tracking(nn.Sequential(network.requires_grad_(False), nn.Linear(3, 3)), MAP())  # adapters
    start_tracking(make_network(), MAP())
    assert not recwarn.list


@pytest.mark.parametrize("posterior", [SWAG(rank=2), SGVB()], ids=["SWAG", "SGVB"])
def test_layers_that_are_replaced_in_training_are_refused(posterior):
    network = make_network()
    tracker = start_tracking(network, posterior)
    network[0] = type(network[0])(network[0].in_features, network[0].out_features)
    with pytest.raises(ValueError, match=r"replaced: \['0.weight', '0.bias'\]"):
        tracker.check_parameters()


def test_parameters_that_the_posterior_is_not_over_may_be_unfrozen_in_training():
    for posterior, options in ((MAP(), {}), (SWAG(rank=2), {"params": ["3.*"]})):
        network = make_network()
        network[0].requires_grad_(False)
        tracker = start_tracking(network, posterior, **options)
        network[0].requires_grad_(True)
        tracker.check_parameters()


def test_training_examples_are_counted_for_every_posterior():
    loader = DataLoader(TensorDataset(torch.zeros(10, 2)), batch_size=3)
    for posterior in (MAP(), SWAG()):
        assert TrackerConfig(posterior).count_examples(loader) == 10
    assert TrackerConfig(MAP()).count_examples(iter([])) == 1
    with pytest.raises(ValueError, match="number of training examples of a list_iterator is unknown"):
        TrackerConfig(SWAG()).count_examples(iter([]))
