"""The site: `sphinx-build -W --keep-going docs build/site`; everything that is not written by hand is in _ext."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import guardlearn

project = "guardlearn"
author = "the guardlearn authors"
release = version = guardlearn.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "guardlearn_site"]
exclude_patterns = ["_ext"]
root_doc = "index"
html_theme = "furo"
html_title = "guardlearn"
html_copy_source = False
html_show_copyright = False
html_static_path = []
smartquotes = False  # commands and predicates are copied from running text
highlight_language = "none"  # a block without a name holds commands, what they printed, or a drawing

myst_heading_anchors = 4  # links to headings as code hosts make them
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!guardlearn\.).*"),  # other projects' names: their sites are not asked
    ("py:.*", r"guardlearn\.(.*\.)?(_\w+|[A-Z])"),  # private names and type variables in signatures
]

default_role = "code"  # docstrings are written with single backticks
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 90
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # as fields of the class, so that autodoc does not list them a second time
napoleon_use_rtype = False

linkcheck_anchors = False  # `make docs-links`; what changes without us is looked at there and nowhere else
linkcheck_ignore = [r"http://localhost.*"]
