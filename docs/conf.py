"""How Sphinx builds the site: `make docs`. Warnings are errors there."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent / "tools"), str(HERE.parent)]

import aiovblk  # noqa: E402  # found by the path above

project = "aiovblk"
author = "The aiovblk developers"
copyright = author  # Sphinx's name
version = release = aiovblk.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "docstrings",
    "command_reference",
    "repository_links",
]
exclude_patterns = ["_ext", "performance.json"]

# Markdown: headings are link targets, as on the pages of a repository.
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]

# Docstrings: Google style, in the order of the source; types stand in the signatures.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_display_short_literal_types = True
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

# `make docs-links` asks every address outside; machines that need no answer are left out.
linkcheck_ignore = [r"https?://(localhost|127\.0\.0\.1|example\.com|host|server)\b"]
linkcheck_timeout = 20
linkcheck_retries = 2

highlight_language = "text"  # of blocks that name none: commands, formats

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"aiovblk {version}"
html_static_path = ["_static"]
html_css_files = ["aiovblk.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5c8a", "color-brand-content": "#0b5c8a"},
    "dark_css_variables": {"color-brand-primary": "#6cb8e6", "color-brand-content": "#6cb8e6"},
}

# The copy button takes the commands and neither prompts nor what they print.
copybutton_prompt_text = r"\$ |# |>>> |\.\.\. "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True
copybutton_remove_prompts = True
copybutton_line_continuation_character = "\\"
