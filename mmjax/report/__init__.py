"""A run as one self-contained page; ``write`` makes it."""

from mmjax.report.page import write

__all__ = ["write"]
