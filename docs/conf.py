"""How is the site built? ``sphinx-build -W -n docs build/docs``: every warning is an error."""

from __future__ import annotations

from pyg_sinode import __version__

project = "pyg_sinode"
author = "the pyg_sinode authors"
copyright = "2026, the pyg_sinode authors"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["figures/*.py", "_build"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings name the types, as PyG's do
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shapes"]

html_theme = "furo"
html_title = f"pyg_sinode {version}"
html_copy_source = False
html_show_sphinx = False

# The objects of other projects are not looked up: the build needs no network.
nitpick_ignore_regex = [("py:.*", r"^(?!pyg_sinode).*")]
linkcheck_timeout = 20
