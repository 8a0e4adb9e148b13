import pytest

from flatbayes.data import DataSplits, Split
from support import batch


@pytest.fixture
def images():
    """Data for `support.network`, which has BatchNorm, dropout and three classes."""
    train, val, test = (Split(inputs=x, targets=y) for x, y in (batch(0, 40), batch(1, 6), batch(2, 30)))
    return DataSplits(train=train, val=val, test=test, class_names=("a", "b", "c"), feature_names=(), augment=None)
