"""Make relative links and pictures of a Markdown file absolute, in place.

Usage: absolute_links.py FILE REPOSITORY_ADDRESS REVISION
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

LINK = re.compile(r"(!?)(\[[^\]]*\])\((?!https?:|#|mailto:)([^)\s]+)\)")


def with_absolute_links(text: str, repository: str, revision: str) -> str:
    """Return the text with links to files of the repository at one revision."""

    def absolute(match: re.Match[str]) -> str:
        kind = "raw" if match[1] else "blob"
        return f"{match[1]}{match[2]}({repository}/{kind}/{revision}/{match[3]})"

    return LINK.sub(absolute, text)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(
        with_absolute_links(path.read_text("utf-8"), *sys.argv[2:4]), "utf-8"
    )
