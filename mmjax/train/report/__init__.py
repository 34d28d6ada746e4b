"""A run as one self-contained page; ``write`` makes it."""

from mmjax.train.report.page import write

__all__ = ["write"]
