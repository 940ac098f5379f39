"""Run the Python blocks of the README, then save, reload and use a fitted model.

Usage: use_package.py README.md, in an environment with only the package installed.
"""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import sknan

RELOAD = """
import pickle, sys
import numpy as np
model, X, expected = pickle.load(open(sys.argv[1], "rb"))
np.testing.assert_array_equal(model.predict_proba(X), expected)
"""


def main(readme: Path) -> None:
    """Run the blocks one after the other, as a reader would, and reload the model."""
    blocks = re.findall(r"```python\n(.*?)```", readme.read_text("utf-8"), re.DOTALL)
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "readme.py")
        script.write_text("\n".join(blocks), "utf-8")
        subprocess.run([sys.executable, script], check=True)

        X = np.random.default_rng(0).normal(size=(200, 4))
        X[::7, 1] = np.nan
        model = sknan.tabular_pipeline("classifier").fit(X, X[:, 0] > 0)
        saved = Path(folder, "model.pickle")
        saved.write_bytes(pickle.dumps((model, X, model.predict_proba(X))))
        subprocess.run([sys.executable, "-c", RELOAD, saved], check=True)
    print(f"sknan {sknan.__version__}: {len(blocks)} blocks and a reloaded model")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
