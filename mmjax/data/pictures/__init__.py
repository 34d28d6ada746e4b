"""Decoding and resampling of pictures, and operations on their pixels."""

from mmjax.data.pictures.decoding import decode, size_of

__all__ = ["decode", "size_of"]
