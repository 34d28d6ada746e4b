"""Decoding and resampling of pictures, and operations on their pixels."""

from mmjax.data.pictures.channels import parse_background
from mmjax.data.pictures.decoding import decode, has_alpha, size_of

__all__ = ["decode", "has_alpha", "parse_background", "size_of"]
