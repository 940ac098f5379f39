"""Attributions: agreement with permutation importance and KernelSHAP, and time.

    python -m benchmarks.attributions --data DIR [--sets NAME ...] [--rows N]

For each data set of ``DIR/datasets.json``, ``tabular_pipeline`` is fitted on two thirds
of the rows, and the others are explained with the training rows as background. The
columns are ranked by mean absolute attribution to the prediction and to the logit, and
by scikit-learn's ``permutation_importance`` (10 repeats, log loss or mean absolute
error). Spearman's correlation of two rankings should be at least 0.8. KernelSHAP, if
``shap`` is installed, explains 20 rows with 30 background rows; the figure is the
correlation of its values with attributions for the same background. The time is the
CPU time for one class or target of 10 000 rows, drawn with replacement, on one thread.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from sklearn.inspection import permutation_importance
from sklearn.model_selection import train_test_split

from sknan import tabular_pipeline
from sknan.inspection import attributions


def read(folder: Path, entry: dict[str, Any]) -> tuple[pd.DataFrame, pd.Series]:
    """Return the table and the target of a data set."""
    missing = ["", *entry["na_values"]]
    frame = pd.read_csv(
        folder / entry["file"], keep_default_na=False, na_values=missing
    )
    return frame.drop(columns=entry["target"]), frame[entry["target"]]


def kernel_shap(model: Any, X: pd.DataFrame, background: pd.DataFrame) -> float:
    """Return the correlation of the attributions with those of KernelSHAP."""
    import shap

    def predict(cells: np.ndarray) -> np.ndarray:
        frame = pd.DataFrame(cells, columns=X.columns).astype(X.dtypes)
        if hasattr(model, "classes_"):
            return np.asarray(model.predict_proba(frame))
        return np.asarray(model.predict(frame))[:, None]

    explainer = shap.KernelExplainer(predict, background.to_numpy(dtype=object))
    theirs = np.asarray(explainer.shap_values(X.to_numpy(dtype=object), silent=True))
    # 3000 gradients: each of the networks is evaluated for all background rows.
    found = attributions(
        model, X, background=background, n_samples=3000, random_state=0
    )
    ours = found.values if found.values.ndim == 3 else found.values[:, :, None]
    if hasattr(model, "classes_") and ours.shape[2] == 1:
        theirs = theirs[:, :, 1:]
    return float(np.corrcoef(ours.ravel(), theirs.ravel())[0, 1])


def measure(X: pd.DataFrame, y: pd.Series, *, is_classification: bool) -> str:
    """Return the figures of one data set as a row of a table."""
    stratify = y if is_classification else None
    X, X_new, y, y_new = train_test_split(
        X, y, test_size=1 / 3, random_state=0, stratify=stratify
    )
    kind = "classifier" if is_classification else "regressor"
    model = tabular_pipeline(kind, random_state=0).fit(X, y)
    score = "neg_log_loss" if is_classification else "neg_mean_absolute_error"
    permuted = permutation_importance(
        model, X_new, y_new, scoring=score, n_repeats=10, random_state=0
    ).importances_mean
    agreements = []
    for response in ("prediction", "logit") if is_classification else ("prediction",):
        found = attributions(
            model, X_new, background=X, response=response, random_state=0
        )
        ranked = found.importances[list(X.columns)]
        agreements.append(f"{spearmanr(permuted, ranked).statistic:.2f}")
    rows = X.sample(10_000, replace=True, random_state=0)
    target = model.classes_[-1] if is_classification else 0
    start = time.process_time()
    attributions(model, rows, background=X, target=target, random_state=0)
    seconds = time.process_time() - start
    shap = "-"
    if importlib.util.find_spec("shap") is not None:
        shap = f"{kernel_shap(model, X_new[:20], X[:30]):.2f}"
    return f"{X.shape[1]} | {' / '.join(agreements)} | {shap} | {seconds:.1f}"


def main() -> None:
    """Print a table of figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+")
    parser.add_argument("--rows", type=int, default=3000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(
        "| data | columns | permutation (prediction / logit) | KernelSHAP | seconds |"
    )
    print("| --- | --- | --- | --- | --- |")
    for entry in json.loads((options.data / "datasets.json").read_text())["datasets"]:
        if options.sets and entry["name"] not in options.sets:
            continue
        X, y = read(options.data, entry)
        X, y = X[y.notna()][: options.rows], y[y.notna()][: options.rows]
        is_classification = entry["task"] != "regression"
        row = measure(X, y, is_classification=is_classification)
        print(f"| {entry['name']} | {row} |", flush=True)


if __name__ == "__main__":
    main()
