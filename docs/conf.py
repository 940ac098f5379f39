"""Configuration of Sphinx, which ``make docs`` runs."""

import sys
import warnings
from pathlib import Path

import matplotlib as mpl
from sphinx.application import Sphinx

import sknan

mpl.use("Agg")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from api_reference import shape_into_notes, write_api_reference  # noqa: E402

write_api_reference(HERE / "api")

project = "sknan"
author = "The sknan developers"
copyright = "2026, the sknan developers"
version = release = sknan.__version__

extensions = [
    "mathml",
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery/*.ipynb", "gallery/*.py"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}

# Links to headings are written as on GitHub, so that they work there too.
myst_heading_anchors = 4
myst_enable_extensions = ["deflist", "dollarmath"]

# A broken cross-reference is an error. Names of other packages are not looked up, since
# the documentation builds without a network connection.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!sknan\.).*"),  # other packages, and bare names of parameters
    (r"py:.*", r"sknan\._.*"),  # private modules have no page
]

autodoc_typehints = "none"  # the docstrings contain types, shapes and defaults
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
# numpydoc also parses the original docstring, in which `setup` below has not yet moved
# the section Shape.
warnings.filterwarnings("ignore", message="Unknown section Shape")
toc_object_entries = False  # each name has a heading

sphinx_gallery_conf = {
    "examples_dirs": str(HERE.parent / "examples"),
    "gallery_dirs": "gallery",
    "filename_pattern": r"[/\\]\d\d_",
    "within_subsection_order": "FileNameSortKey",
    "capture_repr": ("_repr_html_", "__repr__"),
    "abort_on_example_error": True,
    "remove_config_comments": True,
    "show_memory": False,
    "download_all_examples": False,
    "min_reported_time": 1,
}

html_math_renderer = "mathml"
html_theme = "pydata_sphinx_theme"
html_title = "sknan"
html_static_path = ["_static"]
html_css_files = ["sknan.css"]
html_show_sourcelink = False
html_sidebars = {"installation": [], "four_causes": [], "tour": []}  # no subpages
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "header_links_before_dropdown": 8,
    "navbar_persistent": ["search-button"],
    "footer_start": ["copyright"],
    "footer_end": [],
}


def setup(app: Sphinx) -> None:
    """Keep the docstring section ``Shape`` (as in torch), which numpydoc would drop."""
    app.connect("autodoc-process-docstring", shape_into_notes, priority=100)
