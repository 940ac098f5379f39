"""Formulas as MathML, which a browser shows without a script and without a network.

Sphinx's own renderers want a script from a server, or LaTeX. docutils translates.
"""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

# Of "log x", which a browser would print as "logx"; "log(x)" is well as it is.
GAP = re.compile(r'<mo>&ApplyFunction;</mo>(?!\s*<mo stretchy="false">\()')


def write(translator: Any, node: nodes.Element, *, as_block: bool) -> None:
    """Write a formula into the page."""
    formula = node.astext()
    try:
        written = latex2mathml.tex2mathml(formula, as_block=as_block)
    except MathError as error:
        raise ExtensionError(
            f"docutils has no MathML for {formula!r}: {error}"
        ) from None
    written = GAP.sub('<mspace width="0.17em"/>', written)
    translator.body.append(f"<div>{written}</div>" if as_block else written)
    raise nodes.SkipNode


def write_inline(translator: Any, node: nodes.Element) -> None:
    """Write a formula within a line."""
    write(translator, node, as_block=False)


def write_block(translator: Any, node: nodes.Element) -> None:
    """Write a formula that stands by itself."""
    write(translator, node, as_block=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Let conf.py choose ``html_math_renderer = "mathml"``."""
    app.add_html_math_renderer("mathml", (write_inline, None), (write_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
