import re
from pathlib import Path

project = "atomicio"
author = "The atomicio authors"
copyright = "2026, the atomicio authors"
package = Path(__file__).parent.parent / "atomicio" / "__init__.py"
release = version = re.search(r'^__version__ = "(.+)"$', package.read_text(encoding="utf-8"), re.MULTILINE)[1]

extensions = ["sphinx.ext.autodoc"]
exclude_patterns = ["_build", "changelog/*"]
autodoc_member_order = "bysource"
# One signature instead of one for each overload; the docstrings say in words what is taken.
autodoc_typehints = "none"
# 0o600, not 384.
autodoc_preserve_defaults = True
# `atomic_write` on any page leads to the reference; what is not found there (`open`) is shown as code.
default_role = "py:obj"
rst_prolog = ".. py:currentmodule:: atomicio"

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "atomicio"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_copy_source = False
