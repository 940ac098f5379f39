"""Damaged and edited files, each of which must be refused or give a finite result.

    python -m benchmarks.damaged_files [--n 200] [--seed 0] [--only backup] [--case 17]

The files are backups of two trainings, a `NonFiniteReport` and a model of
`sknan.persistence.save`. They are damaged (flipped bits, cut off, parts moved), damaged
below a new checksum, or a value in them is replaced below a new checksum. These are
failures:

- foreign: an error that is not the refusal of the file;
- read: a damaged file without a valid checksum is read, with another result;
- non-finite: a training that resumes, or a model, predicts values that are not finite;
- run: the file has started a process or written a file.

The largest memory of a reading, or of the training that it resumes, is printed at the
end (on Linux). Files of `torch.export` and ONNX are read by torch and onnxruntime:
their answers are counted.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import pickle
import random
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.pipeline import make_pipeline
from skorch.callbacks import Callback, EpochScoring, LRScheduler
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

from sknan import (
    BackupAndRestore,
    GuardedNetRegressor,
    NaNImputer,
    NonFiniteReport,
    NonFiniteTrainingError,
    SafeScaler,
    StableNetRegressor,
)
from sknan._utils import archive
from sknan.persistence import load, save, to_onnx, to_torch

X = np.random.default_rng(0).normal(size=(64, 3)).astype("float32")
Y = X[:, 0] - X[:, 1]
FOLDER = Path(tempfile.mkdtemp())
VALUES: list[Any] = [None, True, 0, -1, 10**9, 10**30, 0.5, -1.0, 1e308, np.inf, np.nan]
VALUES += ["", "x", [], [None], {}, {"a": 1}, (), torch.zeros(0), torch.tensor(np.nan)]
VALUES += [torch.zeros(8, 8, dtype=torch.int8), torch.zeros(1).expand(2**28)]
VALUES += [torch.full((3, 8), torch.inf), torch.zeros(2**20), [[[[0] * 9] * 9] * 9] * 9]


class StopError(Exception):
    """End of a training that leaves its backup."""


class StopInEpoch(Callback):
    """Callback that ends a training in its third epoch."""

    def on_epoch_end(self, net: Any, **_: Any) -> None:
        """End the training."""
        if len(net.history) == 3:
            raise StopError


class Log(nn.Linear):
    """Network with a logarithm of any number."""

    def __init__(self) -> None:
        super().__init__(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logarithm of the sum."""
        return torch.log(super().forward(x))[:, 0]


def net_of(*callbacks: Callback) -> Any:
    """Return a guarded net with all that a backup may contain."""
    scheduler = LRScheduler(ExponentialLR, gamma=0.9)
    torch.manual_seed(0)
    return GuardedNetRegressor(
        nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0)),
        optimizer=torch.optim.Adam,
        adaptive_clip="quantile",
        max_epochs=4,
        batch_size=16,
        train_split=None,
        verbose=0,
        callbacks=[*callbacks, scheduler, EpochScoring("r2", on_train=True)],
    )


def estimator_of(*callbacks: Callback) -> Any:
    """Return an estimator with early stopping and an average."""
    return StableNetRegressor(
        module__width=8,
        max_epochs=4,
        batch_size=16,
        early_stopping=True,
        ema_decay=0.9,
        callbacks=list(callbacks),
        random_state=0,
    )


def written(kind: str) -> bytes:
    """Return an intact file of a kind."""
    path = FOLDER / kind
    if kind.startswith("backup"):
        model = {"backup of net": net_of, "backup": estimator_of}[kind]
        try:
            model(BackupAndRestore(path), StopInEpoch()).fit(X, Y)
        except StopError:
            return path.read_bytes()
    if kind == "report":
        try:
            net_of().set_params(module=Log, on_nonfinite="raise").fit(X, Y)
        except NonFiniteTrainingError as error:
            error.report.save(path)
            return path.read_bytes()
    model = make_pipeline(NaNImputer(), SafeScaler(), estimator_of()).fit(X, Y)
    if kind == "model":
        save(model, path)
    elif kind == "ONNX":
        to_onnx(model, path)
    else:
        program = torch.export.export(to_torch(model), (torch.tensor(X),))
        path = FOLDER / "intact.pt2"
        torch.export.save(program, path)
    return path.read_bytes()


def result_of(kind: str, path: Path) -> Any:
    """Read a file and return what is to be equal."""
    if kind.startswith("backup"):
        model = {"backup of net": net_of, "backup": estimator_of}[kind]
        return model(BackupAndRestore(path)).fit(X, Y).predict(X)
    if kind == "report":
        report = NonFiniteReport.load(path)
        return json.dumps(report.to_dict()) + str(report) + report._repr_html_()
    if kind == "model":
        return load(path).predict(X)
    if kind == "ONNX":
        import onnxruntime

        session = onnxruntime.InferenceSession(path.read_bytes())
        return session.run(None, {session.get_inputs()[0].name: X.astype("float64")})[0]
    return torch.export.load(path).module()(torch.tensor(X)).numpy()


def damaged(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Flip bits, cut a file off, move a part, or insert a part of another file."""
    new = bytearray(data)
    at, end = sorted(rng.sample(range(len(data)), 2))
    kind = rng.randrange(5)
    if kind == 0:
        for _ in range(rng.choice([1, 1, 8])):
            new[rng.randrange(len(new))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del new[at:]
    elif kind == 2:
        del new[at : min(end, at + 99)]
    elif kind == 3:
        new[at:at] = new[at:end]
    else:
        new[at:] = other[rng.randrange(len(other)) :]
    return bytes(new)


def places(part: Any) -> list[tuple[Any, Any]]:
    """Return each container below a part, with its keys."""
    items: Any = part.items() if isinstance(part, dict) else ()
    items = enumerate(part) if isinstance(part, list) else items
    found = [(part, key) for key, _ in items]
    return found + [place for _, item in items for place in places(item)]


def edited(kind: str, data: bytes, rng: random.Random) -> bytes:
    """Replace or delete a value of a file, below a valid checksum."""
    contents = bytes(archive.verified(data) or b"")
    if kind == "model":
        with zipfile.ZipFile(io.BytesIO(contents)) as read:
            parts = {name: read.read(name) for name in read.namelist()}
        name = rng.choice([*parts, *["schema.json"] * 8])
        if name.endswith(".json"):
            tree = json.loads(parts[name])
            values = [v for v in VALUES if not isinstance(v, torch.Tensor)]
            names = ["system", "os", "posix", "FunctionNode", "exec", "builtins"]
            edit(tree, [*values, *names], rng)
            parts[name] = json.dumps(tree).encode()
        else:
            parts[name] = damaged(parts[name], contents, rng)
        new = io.BytesIO()
        with zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as write:
            for name, part in parts.items():
                write.writestr(name, part)
        return archive.sealed(new.getvalue())
    tree = torch.load(io.BytesIO(contents), weights_only=True)
    edit(tree, VALUES, rng)
    new = io.BytesIO()
    archive.write_archive(tree, new)
    return new.getvalue()


def edit(tree: Any, values: list[Any], rng: random.Random) -> None:
    """Replace or delete a value in nested lists and dicts."""
    container, key = rng.choice(places(tree))
    value = container[key]
    if rng.random() < 0.1:
        del container[key]
    elif isinstance(value, torch.Tensor) and value.numel() and rng.random() < 0.5:
        value.view(-1)[rng.randrange(value.numel())] = rng.choice([0, 1, 100])
    else:
        container[key] = rng.choice(values)


class Hostile:
    """Object whose pickle writes a file when it is loaded."""

    def __reduce__(self) -> Any:
        return open, (str(FOLDER / "trace"), "w")


def hostile(kind: str, data: bytes) -> bytes:
    """Replace the pickle in an archive of torch, below a valid checksum."""
    new = io.BytesIO()
    contents = bytes(archive.verified(data) or b"")
    with zipfile.ZipFile(io.BytesIO(contents)) as read, zipfile.ZipFile(new, "w") as to:
        for name in read.namelist():
            is_pickle = name.endswith("data.pkl")
            to.writestr(name, pickle.dumps(Hostile()) if is_pickle else read.read(name))
    return archive.sealed(new.getvalue())


STARTED: list[str] = []
EVENTS = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen"}


def memory(name: str) -> int:
    """Return a number of megabytes that Linux keeps: "VmRSS", or "VmHWM" for a peak."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(s.split()[1]) // 1024 for s in lines if s.startswith(name)), 0)


def judged(kind: str, data: bytes, other: bytes, number: int) -> tuple[str, str]:
    """Damage a file, read it, and return what happened with a failure."""
    rng = random.Random(number)
    how = rng.choice(["damaged", "resealed", "edited", "edited"])
    is_ours = kind not in ("ONNX", "torch.export")
    path = FOLDER / ("read.pt2" if kind == "torch.export" else "read")
    if not is_ours or how == "damaged":
        how, new = "damaged", damaged(data, other, rng)
    elif how == "resealed":
        contents = [bytes(archive.verified(part) or part) for part in (data, other)]
        new = archive.sealed(damaged(*contents, rng))
    elif kind != "model" and rng.random() < 0.05:
        new = hostile(kind, data)
    else:
        new = edited(kind, data, rng)
    path.write_bytes(new)
    STARTED.clear()
    failure = ""
    try:
        result = result_of(kind, path)
        is_same = np.array_equal(result, EXPECTED[kind])
        answer = "read" if is_same else "read, another result"
        if is_ours and how == "damaged" and new != data:
            failure = "read: without a valid checksum"
        elif kind != "report" and not np.isfinite(result).all():
            failure = "non-finite: predictions"
    except NonFiniteTrainingError:
        answer = "resumed, and diverged"
    except Exception as error:
        answer, text = "refused", f"{type(error).__name__}: {error}"
        is_refusal = str(error).startswith(("The backup '", "The file '"))
        frames = traceback.extract_tb(error.__traceback__)
        if kind == "model" and not any("/persistence/" in f.filename for f in frames):
            return f"{kind}, {how}: read, but does not predict", ""
        if not is_ours:
            answer = f"refused by {type(error).__name__}"
        elif type(error) is not ValueError or not is_refusal:
            failure = f"foreign: {text} ({frames[-1].filename}:{frames[-1].lineno})"
    if is_ours and (STARTED or (FOLDER / "trace").exists()):
        failure = f"run: {STARTED}"
    path.unlink(missing_ok=True)
    return f"{kind}, {how}: {answer}", failure


EXPECTED: dict[str, Any] = {}
KINDS = ["backup of net", "backup", "report", "model", "torch.export", "ONNX"]


def main() -> None:
    """Print failures and counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=200, help="number of files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of the names of the kinds")
    parser.add_argument("--case", type=int, help="read the file of this number")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable()
    sys.addaudithook(lambda event, _: event in EVENTS and STARTED.append(event))
    kinds = [kind for kind in KINDS if arguments.only in kind]
    files = {kind: written(kind) for kind in kinds}
    for kind, data in files.items():
        path = FOLDER / ("read.pt2" if kind == "torch.export" else "read")
        path.write_bytes(data)
        EXPECTED[kind] = result_of(kind, path)
    peaks = dict.fromkeys(kinds, 0)
    start = arguments.seed * 1_000_000
    numbers = range(start, start + arguments.n)
    counts: Counter[str] = Counter()
    for number in numbers if arguments.case is None else [arguments.case]:
        kind = kinds[number % len(kinds)]
        other = files[kinds[(number + 1) % len(kinds)]]
        if Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5")  # forget the last peak
        before = memory("VmRSS")
        answer, failure = judged(kind, files[kind], other, number)
        peaks[kind] = max(peaks[kind], memory("VmHWM") - before)
        counts.update([answer, *([failure.partition(":")[0]] if failure else [])])
        if failure:
            print(f"{number} {answer}: {failure[:500]}", flush=True)
    for name, count in sorted(counts.items()):
        print(f"{count:>6} {name}")
    for kind, peak in peaks.items():
        print(f"{peak:>6} MB for {kind}")
    sys.exit(any(":" not in name for name in counts))


if __name__ == "__main__":
    main()
