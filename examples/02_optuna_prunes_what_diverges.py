"""
Prune diverging trials in Optuna
================================

The estimators work with any search library. Here Optuna proposes learning rates between
1e-4 and 1e4, and a callback reports the validation loss of each epoch. If training
fails, the callback prunes the trial at the end of that epoch: the network would be
rescued, but would train at another learning rate than the proposed one. This saves most
of the time of such trials.
"""

# %%
# A table and an objective
# ------------------------

import time
import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
import optuna
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from skorch.callbacks import Callback

from sknan import DivergenceWarning, NaNImputer, SafeScaler, StableNetClassifier

mpl.use("Agg")
import matplotlib.pyplot as plt

OUTPUTS = Path("outputs")

X, y = load_breast_cancer(return_X_y=True)
X[np.random.default_rng(0).random(X.shape) < 0.1] = np.nan
X_train, X_valid, y_train, y_valid = train_test_split(
    X, y, test_size=0.3, random_state=0, stratify=y
)


class PruneOnDivergence(Callback):
    """Report the loss of each epoch to Optuna, and prune trials that diverge."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def on_epoch_end(self, net, **kwargs):
        """Report the loss, and raise ``TrialPruned`` after the first failed step."""
        epoch = len(net.history)
        self.trial.report(net.history[-1, "valid_loss"], epoch)
        if net.nonfinite_reports_:
            report = net.nonfinite_reports_[0]
            self.trial.set_user_attr("cause", report.cause)
            self.trial.set_user_attr("epoch", epoch)
            raise optuna.TrialPruned(str(report))


def objective(trial: optuna.Trial) -> float:
    """Return the error on rows that are not used for training."""
    net = StableNetClassifier(
        lr=trial.suggest_float("lr", 1e-4, 1e4, log=True),
        module__width=trial.suggest_categorical("width", [16, 64]),
        max_epochs=150,
        batch_size=32,
        early_stopping=True,
        n_iter_no_change=150,
        callbacks=[PruneOnDivergence(trial)],
        random_state=0,
    )
    model = make_pipeline(NaNImputer(), SafeScaler(), net).fit(X_train, y_train)
    return 1.0 - model.score(X_valid, y_valid)


# %%
# Twenty trials
# -------------

optuna.logging.set_verbosity(optuna.logging.WARNING)
study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
start = time.perf_counter()
with warnings.catch_warnings():
    # The attributes of a pruned trial contain the cause.
    warnings.simplefilter("ignore", DivergenceWarning)
    study.optimize(objective, n_trials=20)
seconds = time.perf_counter() - start

frame = study.trials_dataframe(
    attrs=("number", "value", "params", "user_attrs", "state", "duration")
)
frame["seconds"] = frame.pop("duration").dt.total_seconds().round(2)
print(frame.sort_values("params_lr").to_string(index=False))
pruned = frame[frame["state"] == "PRUNED"]
complete = frame[frame["state"] == "COMPLETE"]
print(
    f"\n{len(pruned)} of {len(frame)} trials pruned, at "
    f"lr={pruned['params_lr'].min():.3g} and above. Median time of a pruned trial "
    f"{pruned['seconds'].median():.2f} s, of a complete one "
    f"{complete['seconds'].median():.2f} s, total {seconds:.1f} s. Best error "
    f"{study.best_value:.3f} at lr={study.best_params['lr']:.3g}."
)

# %%
# Time of each trial
# ------------------
# The first failure in a process takes about a second longer, because it imports the
# tools that replay a step.

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.scatter(complete["params_lr"], complete["seconds"], label="complete")
axes.scatter(pruned["params_lr"], pruned["seconds"], marker="x", label="pruned")
axes.set(xscale="log", xlabel="proposed learning rate", ylabel="seconds of the trial")
axes.set_title("Diverging trials end at their first failure")
axes.legend()
OUTPUTS.mkdir(exist_ok=True)
figure.savefig(OUTPUTS / "02_optuna_prunes_what_diverges.png", dpi=120)
