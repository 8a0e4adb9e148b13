"""Decisions of least expected cost (Bayes decisions), and what decisions cost on labelled examples.

    expected cost of decision d = sum_c p(c) cost[c, d]

For two classes, and costs of a false positive and a false negative, the decision is positive where
p(positive) > c_fp / (c_fp + c_fn) (Elkan, IJCAI 2001, equation 2). A decision need not be a class: a further column
with one cost for all classes is that of asking a person, which is best where the prediction is uncertain (Chow, IEEE
Transactions on Information Theory, 1970).
"""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from flatbayes.core.devices import widest_float_dtype
from flatbayes.core.input_trees import IGNORE_INDEX
from flatbayes.core.names import format_count, format_names
from flatbayes.likelihoods import CategoricalPredictive, DenseCategoricalPredictive, Predictive
from flatbayes.likelihoods.labels import check_class_indices, to_class_indices, to_tensor

SUM_TOLERANCE = 1e-3
"""The sum of the probabilities of an example may differ from 1 by this much."""


def compute_expected_costs(predictive: Any, costs: Any) -> Float[Tensor, "*shape decisions"]:
    """Expected cost of every decision: the mean of its cost over the classes, weighted by their probabilities.

    Args:
        predictive: Predictions of classes, or their probabilities, shape (..., classes).
        costs: Cost of every decision for every true class, shape (classes, decisions): `costs[c][d]` is what decision
            `d` costs where the class is `c`, in any unit. Gains are negative costs.

    Returns:
        Shape (..., decisions), in the unit of the costs.

    Raises:
        TypeError: The predictions are not of classes.
        ValueError: There is not one finite row of costs for each class, or the probabilities are none.

    Examples:
        >>> compute_expected_costs(torch.tensor([[0.9, 0.1]]), [[0, 1], [20, 0]])
        tensor([[2.0000, 0.9000]], dtype=torch.float64)
    """
    probs = _read_probs(predictive)
    return probs @ check_costs(costs, probs.shape[-1]).to(probs.dtype).to(probs.device)


def decide(predictive: Any, costs: Any) -> Int[Tensor, "*shape"]:
    """The decision of least expected cost for each example; the first one where several are equal.

    Args:
        predictive: As for `compute_expected_costs`.
        costs: As for `compute_expected_costs`.

    Returns:
        Index of a column of the costs, shape (...).

    Raises:
        TypeError: The predictions are not of classes.
        ValueError: There is not one finite row of costs for each class, or the probabilities are none.

    Examples:
        >>> costs = [[0, 1, 0.5], [20, 0, 0.5]]  # "healthy", "ill", or ask a doctor
        >>> decide(torch.tensor([[0.99, 0.01], [0.9, 0.1], [0.1, 0.9]]), costs)
        tensor([0, 2, 1])
        >>> decide(fitted.predict(inputs), 1 - torch.eye(10)).shape  # equal costs: the most probable class
        torch.Size([100])
    """
    return compute_expected_costs(predictive, costs).argmin(-1)


def mean_cost(decisions: Int[Tensor, "*shape"], targets: Any, costs: Any) -> float:
    """Mean cost of decisions on labelled examples.

    Args:
        decisions: Index of a decision for each example, such as those of `decide`.
        targets: Class indices of the same shape; -100 leaves an example or position out.
        costs: As for `compute_expected_costs`.

    Raises:
        ValueError: Decisions and targets do not match each other or the costs, or no example has a label.

    Examples:
        >>> costs = [[0, 1], [20, 0]]
        >>> mean_cost(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 0, 1, 1]), costs)
        5.25
    """
    decisions, targets = to_tensor(decisions).cpu(), to_tensor(targets).cpu()
    matrix = check_costs(costs)
    num_classes, num_decisions = matrix.shape
    if targets.ndim == 2 and targets.shape != decisions.shape:
        targets = to_class_indices(targets, num_classes)
    if decisions.shape != targets.shape or decisions.is_floating_point() or targets.is_floating_point():
        raise ValueError(
            "There must be one decision and one class for each example, both as indices, got "
            f"{decisions.dtype} of shape {tuple(decisions.shape)} and {targets.dtype} of shape "
            f"{tuple(targets.shape)}. Pass decide(predictive, costs) and the class indices in the same order."
        )
    is_labelled = targets != IGNORE_INDEX
    decisions, targets = decisions[is_labelled].long(), targets[is_labelled].long()
    if not len(targets):
        raise ValueError("There are no labelled examples, so decisions have no mean cost. Give examples with labels.")
    check_class_indices(targets, num_classes)
    if bool(((decisions < 0) | (decisions >= num_decisions)).any()):
        raise ValueError(
            f"The costs have {format_count(num_decisions, 'decision')}, 0 to {num_decisions - 1}, and the decisions "
            f"are {int(decisions.min())} to {int(decisions.max())}. Give one column of costs for each decision."
        )
    return float(matrix[targets, decisions].mean())


def check_costs(costs: Any, num_classes: int | None = None) -> Float[Tensor, "classes decisions"]:
    """Costs as a matrix of float64 in main memory.

    Raises:
        ValueError: They are no matrix of finite numbers, have another number of rows than there are classes, or are
            a data frame whose rows have names, which may be in another order than the classes.
    """
    names = list(getattr(costs, "index", ())) if hasattr(costs, "columns") else []
    if any(isinstance(name, str) for name in names):
        raise ValueError(
            f"The rows of the costs are called {format_names(map(str, names))}, and predictions do not know what "
            "their classes are called. Pass an array with the rows in the order of the classes, which is that of "
            "fitted.info['class_names']: costs.loc[class_names].to_numpy()."
        )
    try:
        matrix = to_tensor(costs).detach().cpu().double()
    except (TypeError, ValueError) as error:
        raise ValueError(f"costs must be a matrix of numbers, one row for each class: {error}") from error
    if matrix.ndim != 2 or not matrix.numel() or num_classes not in (None, len(matrix)):
        rows = "one row for each class" if num_classes is None else f"{num_classes} rows, one for each class,"
        raise ValueError(
            f"costs must have {rows} and one column for each decision, got the shape {tuple(matrix.shape)}. For "
            "errors of equal cost pass 1 - torch.eye(num_classes)."
        )
    if not bool(matrix.isfinite().all()):
        raise ValueError(
            "costs must be finite, got NaN or infinity. For a decision that must not be taken, give a cost far above "
            "the others."
        )
    return matrix


def _read_probs(predictive: Any) -> Float[Tensor, "*shape classes"]:
    """Class probabilities, float64 where the device has it.

    Positions without a prediction are NaN.

    Raises:
        TypeError: The predictions are not of classes.
        ValueError: A row is not a distribution over classes.
    """
    if isinstance(predictive, CategoricalPredictive | DenseCategoricalPredictive):
        return predictive.mean
    if isinstance(predictive, Predictive):
        raise TypeError(
            f"Costs are those of classes, got a {type(predictive).__name__}. For labels that are each 0 or 1 pass "
            "the two probabilities of a label, torch.stack([1 - p, p], -1) with p = predictive.mean[:, label]."
        )
    probs = to_tensor(predictive)
    probs = probs.to(widest_float_dtype(probs))
    is_wrong = None if probs.ndim < 2 else ~((probs >= 0).all(-1) & ((probs.sum(-1) - 1).abs() <= SUM_TOLERANCE))
    if is_wrong is None or bool(is_wrong.any()):
        raise ValueError(
            "Probabilities must have the shape (examples, classes), be at least 0 and have sum 1, got the shape "
            f"{tuple(probs.shape)}{'' if is_wrong is None else f' and {int(is_wrong.sum())} rows that do not'}. Pass "
            "predictive, or logits.softmax(-1)."
        )
    return probs
