import threading

import pytest
import torch

from flatbayes.core import asked_part
from flatbayes.core.share import asking_for

ROWS, LABELS = torch.arange(24).view(8, 3), torch.arange(8)


def test_gives_all_unless_asked_for_less():
    rows, labels = asked_part(ROWS, LABELS)
    assert rows is ROWS
    assert labels is LABELS


@pytest.mark.parametrize(("share", "count"), [(1.0, 8), (0.5, 4), (0.3, 3), (0.25, 2), (0.01, 2)])
def test_gives_the_first_examples_rounded_up_and_never_one_alone(share, count):
    with asking_for(share):
        rows, labels = asked_part(ROWS, LABELS)
    assert torch.equal(rows, ROWS[:count])
    assert torch.equal(labels, LABELS[:count])


def test_a_batch_of_one_is_given_whole():
    with asking_for(0.5):
        assert len(asked_part(ROWS[:1])[0]) == 1


def test_ends_with_an_exception_and_stays_in_its_thread():
    with pytest.raises(ArithmeticError), asking_for(0.5):
        elsewhere = []
        thread = threading.Thread(target=lambda: elsewhere.extend(asked_part(LABELS)))
        thread.start()
        thread.join()
        assert len(elsewhere[0]) == 8
        raise ArithmeticError
    assert len(asked_part(LABELS)[0]) == 8
