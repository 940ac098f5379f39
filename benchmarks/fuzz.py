"""Random uses of every public estimator, each of which must be finite or refused.

    python -m benchmarks.fuzz [--n 1000] [--seed 0] [--only StableNet]
    python -m benchmarks.fuzz --case 1000042

Estimator, parameters, network, table, target and weights are drawn at random. The
values of a parameter come from its type and the names in its documentation; a few of
them are invalid. Each case is run twice, which counts as two fits. These are failures:

- non-finite: a prediction, a transformed value or a weight is NaN or infinite;
- foreign: an error that neither sknan nor the validation of scikit-learn raised;
- warning: a warning of another library, which the user cannot act upon;
- report: a report of the guard that lacks a part;
- different: the second run, or a pickle, gives other results or another message;
- time-out: a fit of more than `--timeout` seconds of processor time, or one that
  calls its network without end.

Each failure has a number, by which the second command shows the case.
"""

from __future__ import annotations

import argparse
import copy
import linecache
import pickle
import re
import signal
import sys
import traceback
import warnings
from collections import Counter
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from sklearn.exceptions import NotFittedError

import sknan
from benchmarks.fuzz_cases import ENTRIES, Draw
from benchmarks.fuzz_networks import Drawn, Hang
from sknan.preprocessing import TableCleaner

# Number of cases of a seed. The number of a case contains its seed.
STRIDE = 1_000_000


class Outcome(NamedTuple):
    """Result of a run as text, and its failures."""

    result: str
    failures: list[str]
    text: str = ""


def is_intended(error: BaseException) -> bool:
    """Whether sknan, or scikit-learn's validation, has raised an error on purpose."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    usual = ValueError, TypeError, NotFittedError, AttributeError, sknan.SknanError
    is_known = "/sknan/" in last.filename or "/sklearn/" in last.filename
    is_raised = bool(last.line and last.line.startswith("raise"))
    # A drawn scorer may not take the targets. The note of sknan names it.
    is_raised |= any("scoring=" in note for note in getattr(error, "__notes__", ()))
    return is_known and is_raised and isinstance(error, usual)


class Warned(list):  # type: ignore[type-arg]
    """Warnings that the user cannot act upon, with the line that issued them."""

    def __call__(  # as warnings.showwarning
        self, message: Warning | str, category: type, *_: Any
    ) -> None:
        """Keep a warning, unless sknan, scikit-learn or the network issued it."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and "warnings" in frame.f_globals["__name__"]:
            frame = frame.f_back
        assert frame is not None
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        package = frame.f_globals["__name__"].partition(".")[0]
        is_usual = category is UserWarning or "sknan" in category.__module__
        if package == "sklearn" or (package == "sknan" and is_usual and "warn" in line):
            return
        place = f"{frame.f_globals['__name__']}:{frame.f_lineno}"
        while frame is not None:  # the user's own network may warn
            if frame.f_globals["__name__"] == Drawn.__module__:
                return
            frame = frame.f_back
        self.append(f"warning: {category.__name__}: {message} ({place})")


def results_of(model: Any, X: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the outputs of a fitted estimator, and what is not finite."""
    outputs, failures = {}, []
    for name in ("predict", "predict_proba", "transform"):
        if not hasattr(model, name):
            continue
        try:
            outputs[name] = values = getattr(model, name)(copy.deepcopy(X))
        except Exception as error:
            if not is_intended(error):
                raise
            outputs[name] = str(error)
            continue
        array = np.asarray(values.toarray() if sparse.issparse(values) else values)
        allowed = np.isfinite(array) if array.dtype.kind == "f" else np.True_
        if isinstance(model, sknan.SafeScaler):
            allowed = ~np.isinf(array)  # NaN stays NaN
        if not isinstance(model, TableCleaner) and not allowed.all():
            failures.append(f"non-finite: {name}")
    if hasattr(getattr(model, "net_", model), "module_"):
        failures += faults_of(getattr(model, "net_", model))
    return outputs, failures


def faults_of(net: Any) -> list[str]:
    """Return what is not finite in a net and its training, and odd reports."""
    losses = [b.get("train_loss", 0.0) for e in net.history for b in e["batches"]]
    parts = {
        **net.module_.state_dict(),
        "the loss of a step that was taken": torch.tensor(losses),
        "effective_lr_": torch.tensor(float(net.effective_lr_)),
    }
    faults = [
        f"non-finite: {name}"
        for name, tensor in parts.items()
        if tensor.is_floating_point() and not torch.isfinite(tensor).all()
    ]
    texts = [str(report) for report in net.nonfinite_reports_]
    odd = [text for text in texts if "None" in text or not text.endswith(".")]
    return faults + [f"report: {text}" for text in odd]


def text_of(outputs: dict[str, Any]) -> str:
    """Return outputs as text in which each bit counts."""
    parts = []
    for name, values in outputs.items():
        array = np.asarray(values.toarray() if sparse.issparse(values) else values)
        plain = array.dtype.kind in "fiub"
        parts.append(f"{name}: {array.tobytes().hex() if plain else array.tolist()}")
    return re.sub("0x[0-9a-f]+", "0x", "\n".join(parts))


def run(number: int, timeout: float = 60.0) -> Outcome:
    """Fit the estimator of a case and use it."""
    draw, caught = Draw(number), Warned()
    X, y = draw.data()
    torch.manual_seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002 - scikit-learn's splitters use it
    previous = signal.signal(signal.SIGPROF, _hang)
    signal.setitimer(signal.ITIMER_PROF, timeout)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = caught
            model = draw.model(X)
            model.fit(copy.deepcopy(X), y, **draw.fit_params(model, len(y)))
            outputs, failures = results_of(model, X)
            text = text_of(outputs)
            if draw.maybe(0.25):
                again, _ = results_of(pickle.loads(pickle.dumps(model)), X)
                failures += ["different: pickle"] * (text_of(again) != text)
        return Outcome("fitted", [*failures, *sorted(set(caught))], text)
    except Hang:
        return Outcome("hung", [f"time-out: {draw.name}"])
    except Exception as error:
        text = re.sub("0x[0-9a-f]+", "0x", f"{type(error).__name__}: {error}")
        if is_intended(error):
            return Outcome("refused", sorted(set(caught)), text)
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{last.filename.rpartition('site-packages/')[2]}:{last.lineno}"
        return Outcome("failed", [f"foreign: {text} ({place})"], text)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def _hang(*_: Any) -> None:
    raise Hang


def judged(number: int, timeout: float = 60.0) -> Outcome:
    """Run a case twice and compare."""
    first, second = run(number, timeout), run(number, timeout)
    if first != second and "time-out" not in str(first.failures):
        first.failures.append("different: the second run")
    return first


def main() -> None:
    """Print failures and counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1000, help="number of fits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of the names of estimators")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds")
    parser.add_argument("--case", type=int, help="show the case of this number")
    parser.add_argument("--verbose", action="store_true", help="show every outcome")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.case is not None:
        show(arguments.case)
        return
    names = list(ENTRIES)
    numbers = range(arguments.seed * STRIDE, (arguments.seed + 1) * STRIDE)
    chosen = [n for n in numbers if arguments.only in names[n % len(names)]]
    counts: Counter[str] = Counter()
    for number in chosen[: arguments.n // 2]:
        outcome = judged(number, arguments.timeout)
        counts.update(["fits", "fits", outcome.result])
        if arguments.verbose:
            print(f"{number} {outcome.result}: {outcome.text[:300]}", flush=True)
        for failure in outcome.failures:
            counts[failure.partition(":")[0]] += 1
            print(f"{number} {names[number % len(names)]}: {failure[:400]}", flush=True)
    for name, count in counts.items():
        print(f"{count:>6} {name}")


def show(number: int) -> None:
    """Print a case, run it, and raise its error."""
    draw = Draw(number)
    X, y = draw.data()
    print(X, repr(y), draw.model(X), sep="\n")
    print(*judged(number)[:2])
    draw = Draw(number)
    X, y = draw.data()
    model = draw.model(X)
    model.fit(X, y, **draw.fit_params(model, len(y)))


if __name__ == "__main__":
    main()
