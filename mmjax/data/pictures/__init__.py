"""Encoded pictures to pixels: what a file of any kind shows, upright, in RGB, cropped and resized in one go."""

from mmjax.data.pictures.decoding import FORMATS, MAX_PIXELS, decode, size_of

__all__ = ["FORMATS", "MAX_PIXELS", "decode", "size_of"]
