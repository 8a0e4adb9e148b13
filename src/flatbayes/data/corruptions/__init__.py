"""Corruptions of images: noise, blur, weather and digital, in five severities, made as they are needed."""

from flatbayes.data.corruptions.corrupt import (
    CORRUPTIONS,
    STANDARD_CORRUPTIONS,
    corrupt_images,
    infer_white_value,
    list_corruptions,
)

__all__ = ["CORRUPTIONS", "STANDARD_CORRUPTIONS", "corrupt_images", "infer_white_value", "list_corruptions"]
