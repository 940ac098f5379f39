"""Formulas as MathML, which browsers display without a script or a network connection.

Sphinx's renderers need a script from a server, or LaTeX. This extension uses the
translator of docutils.
"""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

# A browser would print "log x" as "logx". "log(x)" needs no gap.
GAP = re.compile(r'<mo>&ApplyFunction;</mo>(?!\s*<mo stretchy="false">\()')


def write(translator: Any, node: nodes.Element, *, as_block: bool) -> None:
    """Append a formula to the page."""
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
    """Append an inline formula to the page."""
    write(translator, node, as_block=False)


def write_block(translator: Any, node: nodes.Element) -> None:
    """Append a displayed formula to the page."""
    write(translator, node, as_block=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer that conf.py selects as ``html_math_renderer``."""
    app.add_html_math_renderer("mathml", (write_inline, None), (write_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
