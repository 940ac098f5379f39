"""Make relative links and pictures of a Markdown file absolute, in place.

Usage: absolute_links.py FILE REPOSITORY_ADDRESS REVISION
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from urllib.parse import urljoin

# A link may hold a picture, as a badge does.
RELATIVE = r"\((?!https?:|#|mailto:)([^)\s]+)\)"
PICTURE = re.compile(r"(!\[[^\]]*\])" + RELATIVE)
LINK = re.compile(r"(\])" + RELATIVE)


def with_absolute_links(text: str, repository: str, revision: str) -> str:
    """Return the text with links to files of the repository at one revision."""
    for pattern, kind in ((PICTURE, "raw"), (LINK, "blob")):
        base = f"{repository}/{kind}/{revision}/"
        text = pattern.sub(lambda m, b=base: f"{m[1]}({urljoin(b, m[2])})", text)
    return text


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(
        with_absolute_links(path.read_text("utf-8"), *sys.argv[2:4]), "utf-8"
    )
