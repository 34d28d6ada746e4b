"""Sphinx configuration: ``sphinx-build -W docs site`` builds the documentation; nothing comes from the network."""

import sys
from pathlib import Path

import mmjax

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "mmjax"
author = "the mmjax authors"
copyright = author
version = release = mmjax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "reference"]
exclude_patterns = ["extensions"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_google_docstring = True

smartquotes = False
highlight_language = "none"

html_theme = "furo"
html_title = "mmjax"
html_copy_source = False
html_show_sphinx = False
