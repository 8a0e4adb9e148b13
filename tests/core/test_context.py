import threading

import pytest
import torch

from flatbayes.core import subset_batch
from flatbayes.core.context import batch_fraction

ROWS, LABELS = torch.arange(24).view(8, 3), torch.arange(8)


def test_gives_all_unless_asked_for_less():
    rows, labels = subset_batch(ROWS, LABELS)
    assert rows is ROWS
    assert labels is LABELS


@pytest.mark.parametrize(("share", "count"), [(1.0, 8), (0.5, 4), (0.3, 3), (0.25, 2), (0.01, 2)])
def test_gives_the_first_examples_rounded_up_and_never_one_alone(share, count):
    with batch_fraction(share):
        rows, labels = subset_batch(ROWS, LABELS)
    assert torch.equal(rows, ROWS[:count])
    assert torch.equal(labels, LABELS[:count])


def test_a_batch_of_one_is_given_whole():
    with batch_fraction(0.5):
        assert len(subset_batch(ROWS[:1])[0]) == 1


def test_ends_with_an_exception_and_stays_in_its_thread():
    with pytest.raises(ArithmeticError), batch_fraction(0.5):
        elsewhere = []
        thread = threading.Thread(target=lambda: elsewhere.extend(subset_batch(LABELS)))
        thread.start()
        thread.join()
        assert len(elsewhere[0]) == 8
        raise ArithmeticError
    assert len(subset_batch(LABELS)[0]) == 8
