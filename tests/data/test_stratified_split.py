import pytest
import torch

from flatbayes.data.stratified_split import (
    check_size,
    compute_class_quotas,
    draw_stratified,
    resolve_size,
    stratified_split,
)

TARGETS = torch.arange(997) ** 2 % 7  # unequal classes 0, 1, 2 and 4


def split(**changes):
    return stratified_split(
        TARGETS, **({"train_size": None, "val_size": 0.1, "test_size": 0.2, "split_seed": 0, "seed": 0} | changes)
    )


def test_splits_are_disjoint_and_cover_everything():
    train, val, test = split()
    assert torch.cat([train, val, test]).sort().values.tolist() == list(range(997))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({}, (718, 80, 199)),
        ({"train_size": 17, "val_size": 13, "test_size": 11}, (17, 13, 11)),
        ({"val_size": 0, "test_size": 0}, (997, 0, 0)),
        ({"train_size": 1, "val_size": 1, "test_size": 1}, (1, 1, 1)),
        ({"val_size": 0, "test_size": 997}, (0, 0, 997)),
    ],
)
def test_sizes_are_exact(sizes, expected):
    train, val, test = split(**sizes)
    assert (len(train), len(val), len(test)) == expected
    assert len(set(torch.cat([train, val, test]).tolist())) == sum(expected)


def test_classes_keep_their_proportions():
    proportions = TARGETS.bincount() / len(TARGETS)
    for rows in split(train_size=100):
        assert ((TARGETS[rows].bincount(minlength=5) - proportions * len(rows)).abs() <= 2).all()


def test_the_same_seeds_give_the_same_rows():
    for first, second in zip(split(seed=3), split(seed=3), strict=True):
        assert torch.equal(first, second)


def test_the_seed_changes_training_and_validation_but_not_the_test_split():
    first, second = split(seed=0), split(seed=1)
    assert set(first[0].tolist()) != set(second[0].tolist())
    assert set(first[1].tolist()) != set(second[1].tolist())
    assert torch.equal(first[2], second[2])


def test_the_seed_changes_a_training_subset_without_validation():
    first, second = (split(train_size=300, val_size=0, seed=seed)[0] for seed in (0, 1))
    assert set(first.tolist()) != set(second.tolist())


def test_the_other_sizes_do_not_change_the_test_split():
    assert torch.equal(split(train_size=10, val_size=0.5)[2], split()[2])


def test_the_split_seed_changes_every_split():
    for first, second in zip(split(), split(split_seed=1), strict=True):
        assert set(first.tolist()) != set(second.tolist())


def test_rows_are_in_random_order():
    for rows in split():
        assert rows.tolist() != rows.sort().values.tolist()
        assert len(TARGETS[rows[:20]].unique()) > 1


def test_too_many_examples_are_refused():
    with pytest.raises(ValueError, match="train_size=900 examples were asked for, and 718 are left"):
        split(train_size=900)
    with pytest.raises(ValueError, match=r"test_size=998 .* only 997"):
        split(test_size=998)
    with pytest.raises(ValueError, match=r"val_size=799 .* only 798"):
        split(val_size=799)


@pytest.mark.parametrize("size", [-0.1, -1, 1.5, float("nan"), float("inf")])
def test_invalid_sizes_are_refused(size):
    with pytest.raises(ValueError, match="val_size is a fraction"):
        check_size(size, "val_size")


@pytest.mark.parametrize(("size", "expected"), [(0.25, 2), (1, 1), (3.0, 3), (0, 0)])
def test_fractions_and_counts(size, expected):
    check_size(size, "x")
    assert resolve_size(size, 8, "x") == expected


@pytest.mark.parametrize("size", [0, 1, 9, 50, 99, 100])
def test_quotas_sum_to_the_size_and_are_proportional(size):
    counts = torch.tensor([50, 30, 19, 1, 0])
    quotas = compute_class_quotas(counts, size)
    assert int(quotas.sum()) == size
    assert ((quotas - counts * size / 100).abs() < 1).all()
    assert (quotas <= counts).all()


def test_rows_of_a_class_are_drawn_with_equal_probability():
    targets = torch.tensor([0] * 6 + [1] * 4)
    hits = torch.zeros(10)
    for seed in range(600):
        drawn, _ = draw_stratified(targets, 5, [seed])
        hits[drawn] += 1
    assert (hits - 300).abs().max() < 75  # six standard deviations of a fair draw
