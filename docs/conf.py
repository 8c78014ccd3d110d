"""How Sphinx builds these pages; `scripts/docs` calls it. Nothing here reaches for the network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject
from sphinx.environment import BuildEnvironment

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

import cnnlog  # noqa: E402  # of this checkout, whatever is installed

project = "cnnlog"
author = "the cnnlog authors"
release = cnnlog.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "command_help"]
exclude_patterns = ["_build"]
nitpicky = True
default_role = "code"  # docstrings write code in single backticks, as Markdown does

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_type_aliases = {"FloatArray": "FloatArray", "Progress": "Progress", "Forward": "Forward", "Given": "Given"}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"cnnlog {release}"
html_static_path = ["_static"]
html_css_files = ["cnnlog.css"]
html_copy_source = False
html_show_copyright = False


def _link_by_last_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.TextElement
) -> nodes.Element | None:
    """Link a type in a signature to the page's entry for it; types of other packages stay plain text.

    `Probe` is documented as `cnnlog.Probe`, but an annotation names the module that holds the class.
    """
    if node.get("refdomain") != "py":
        return None
    last = str(node["reftarget"]).rpartition(".")[2]
    domain: Any = env.domains["py"]
    for name, entry in domain.objects.items():
        if name.rpartition(".")[2] == last and entry.objtype == "class":
            found: nodes.Element = domain.resolve_xref(env, node["refdoc"], app.builder, "class", name, node, contnode)
            return found
    return contnode if node.get("reftype") in ("class", "obj", "data", "exc") else None


def setup(app: Sphinx) -> None:
    """Sphinx calls this when it has read the settings."""
    app.connect("missing-reference", _link_by_last_name)
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"  # as the docstrings call them; Sphinx says "Variables"
