"""Corruptions of images: noise, blur, weather and digital, in five severities, made as they are needed."""

from flatbayes.data.corruptions.corrupt import CORRUPTIONS, STANDARD, corrupt, corruptions_for, white_of

__all__ = ["CORRUPTIONS", "STANDARD", "corrupt", "corruptions_for", "white_of"]
