"""Foundations: shared types, training progress, and the only code that edits weights, buffers and random state."""

from typing import TYPE_CHECKING

__all__ = ["Closure", "Examples", "LossFn", "OptimizerFactory", "State", "TrainingProgress", "subset_batch"]

if TYPE_CHECKING:
    from flatbayes.core.context import subset_batch
    from flatbayes.core.progress import TrainingProgress
    from flatbayes.core.types import Closure, Examples, LossFn, OptimizerFactory, State
else:
    from flatbayes.core.lazy import export_lazily

    __getattr__, __dir__ = export_lazily(
        __name__,
        {
            "flatbayes.core.context": "subset_batch",
            "flatbayes.core.progress": "TrainingProgress",
            "flatbayes.core.types": "Closure Examples LossFn OptimizerFactory State",
        },
    )
