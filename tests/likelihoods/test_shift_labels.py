"""Labels that are the input tokens of a causal language model: which outputs and labels are compared."""

import pytest
import torch
from torch.nn import functional as F

from flatbayes.likelihoods import Custom, DenseCategorical
from flatbayes.likelihoods.custom import count_right
from flatbayes.prediction.inputs import find_nonfinite_rows
from flatbayes.prediction.outputs import make_summary

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(3, 6, 5, generator=GENERATOR)
TOKENS = torch.randint(5, (3, 6), generator=GENERATOR)
TOKENS[0, 4:] = -100  # padding
TOKENS[1, :3] = -100  # a prompt without labels
SHIFTED = DenseCategorical(5, class_dim=-1, shift_labels=True)
PLAIN = DenseCategorical(5, class_dim=-1)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("class_dim", [1, -1])
def test_the_loss_compares_outputs_with_the_next_label(class_dim, label_smoothing):
    likelihood = DenseCategorical(5, class_dim, shift_labels=True)
    outputs = (LOGITS.movedim(-1, 1) if class_dim == 1 else LOGITS).double()
    loss = likelihood.make_smoothed_loss(label_smoothing)(outputs, TOKENS)
    pairs = LOGITS[:, :-1].double().flatten(0, 1), TOKENS[:, 1:].flatten()
    torch.testing.assert_close(loss, F.cross_entropy(*pairs, label_smoothing=label_smoothing))
    assert likelihood.count_targets(TOKENS) == int((TOKENS[:, 1:] != -100).sum()) == 11
    assert likelihood.find_targets(TOKENS).shape == TOKENS.shape


def test_the_first_token_is_no_target():
    only_first = torch.full_like(TOKENS, -100)
    only_first[:, 0] = 1
    assert SHIFTED.loss(LOGITS, only_first) == 0
    assert SHIFTED.count_targets(only_first) == 0
    assert not SHIFTED.find_labelled(only_first).any()


def test_predictions_are_at_the_positions_of_the_labels():
    networks = [LOGITS, LOGITS + torch.randn(LOGITS.shape, generator=GENERATOR)]
    predictive, plain = (likelihood.predictive(networks, keep_members=True) for likelihood in (SHIFTED, PLAIN))
    assert predictive.log_probs.shape == plain.log_probs.shape
    torch.testing.assert_close(predictive.log_probs[:, 1:], plain.log_probs[:, :-1])
    torch.testing.assert_close(predictive.member_probs[:, :, 1:], plain.member_probs[:, :, :-1])
    for values in (predictive.mean, predictive.entropy, predictive.mutual_information, predictive.variance):
        assert values[:, 0].isnan().all()
        assert values[:, 1:].isfinite().all()
    assert (predictive.top_class[:, 0] == -100).all()
    assert not len(find_nonfinite_rows(predictive))
    flat, labels = predictive.select_labelled(TOKENS)  # also without `find_targets`
    assert len(labels) == 11
    torch.testing.assert_close(
        flat.log_probs, plain.log_probs[:, :-1][TOKENS[:, 1:] != -100].reshape(11, 5), rtol=0, atol=0
    )
    columns = predictive.columns()
    torch.testing.assert_close(torch.tensor(columns["entropy"]), plain.entropy[:, :-1].mean(1))


def test_a_prediction_that_is_not_finite_is_found_after_the_first_token():
    overflowed = LOGITS.clone()
    overflowed[2, 3] = torch.nan
    assert find_nonfinite_rows(SHIFTED.predictive([overflowed])).tolist() == [2]


def test_joined_predictions_keep_the_first_position_without_prediction():
    short = SHIFTED.predictive([LOGITS[:, :4]])
    joined = type(short).concatenate([short, SHIFTED.predictive([LOGITS])])
    assert joined.num_skipped == 1
    assert joined.log_probs.shape == (6, 6, 5)
    assert joined.log_probs[:3, 4:].isnan().all()


def test_right_tokens_and_the_compiled_summary():
    right, total = count_right(SHIFTED, LOGITS, TOKENS)
    expected = (LOGITS[:, :-1].argmax(-1) == TOKENS[:, 1:])[TOKENS[:, 1:] != -100]
    assert (right, total) == (int(expected.sum()), 11)
    tensors = make_summary(SHIFTED)([LOGITS, 2 * LOGITS])
    predictive = SHIFTED.predictive([LOGITS, 2 * LOGITS])
    for name in ("mean", "entropy", "mutual_information"):
        torch.testing.assert_close(
            tensors[name].double(), getattr(predictive, name), rtol=1e-5, atol=1e-6, equal_nan=True
        )


def test_a_loss_of_the_user_gets_the_compared_outputs_and_labels():
    custom = Custom(lambda outputs, targets: F.cross_entropy(outputs.flatten(0, 1), targets.flatten()), SHIFTED)
    torch.testing.assert_close(custom.loss(LOGITS, TOKENS), SHIFTED.loss(LOGITS, TOKENS))


def test_targets_with_further_axes_are_refused():
    with pytest.raises(ValueError, match="tokens of texts, shape"):
        DenseCategorical(5, shift_labels=True).prepare_targets(torch.zeros(2, 3, 4).long())


def test_a_vocabulary_has_no_column_for_each_token():
    predictive = DenseCategorical(1001, class_dim=-1).predictive([torch.randn(2, 3, 1001, generator=GENERATOR)])
    assert list(predictive.columns()) == ["confidence", "entropy", "mutual_information"]
