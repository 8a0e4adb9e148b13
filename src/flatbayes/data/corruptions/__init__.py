"""Image corruptions in five severities, after ImageNet-C (Hendrycks & Dietterich, ICLR 2019)."""

from flatbayes.data.corruptions.corrupt import (
    CORRUPTIONS,
    STANDARD_CORRUPTIONS,
    corrupt_images,
    infer_white_value,
    list_corruptions,
)

__all__ = ["CORRUPTIONS", "STANDARD_CORRUPTIONS", "corrupt_images", "infer_white_value", "list_corruptions"]
