"""Encoded pictures to pixels: what a file of any kind shows, upright, in RGB, cropped and resized in one go."""

from mmjax.data.pictures.decoding import decode, size_of

__all__ = ["decode", "size_of"]
