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
default_role = "code"

html_theme = "furo"
html_title = "atomicio"
html_static_path = ["_static"]
html_copy_source = False
