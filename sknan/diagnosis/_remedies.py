"""Recommended action for each cause and each operation that fails."""

from __future__ import annotations

from typing import NamedTuple

from sknan.diagnosis._evidence import FailedOperation
from sknan.diagnosis._report import Cause

ACTIONS: dict[Cause, str] = {
    "data": (
        "Clean and impute the inputs first: "
        "make_pipeline(NaNImputer(), SafeScaler(), net)."
    ),
    "learning_rate": "Lower lr, or add warmup=0.05, and clip_norm=1.0 if it is off.",
    "gradient": (
        "Clip the gradients with clip_norm=1.0, scale inputs and targets, and choose "
        "an initialization or a cell that does not amplify."
    ),
    "activation": (
        "Look in the module's forward for log, sqrt, division, exp, norm or a softmax "
        "over nothing, and keep its argument inside the domain."
    ),
    "loss": (
        "Choose a loss that works on logits or in log space, such as "
        "criterion='cross_entropy' or 'huber'."
    ),
    "architecture": "Rewrite the operation so that its value and gradient stay finite.",
    "precision": "Use a wider dtype, such as float32.",
}


class _Replacement(NamedTuple):
    """Parts of sknan that can take the place of an operation."""

    function: str = ""  # in sknan.functional
    loss: str = ""  # for a loss that is written out with the operation


_REPLACEMENTS = {
    "_log_softmax": _Replacement("log_softmax"),
    "_softmax": _Replacement("softmax"),
    "acos": _Replacement("acos"),
    "asin": _Replacement("asin"),
    "atan2": _Replacement("atan2"),
    "atanh": _Replacement("atanh"),
    "cosh": _Replacement("softplus", "losses.LogCoshLoss"),
    "div": _Replacement("divide", "losses.MAPELoss, or functional.divide"),
    "exp": _Replacement("exp", "losses.PoissonNLLLoss"),
    "expm1": _Replacement("expm1"),
    "hypot": _Replacement("hypot"),
    "linalg_vector_norm": _Replacement("norm"),
    "log": _Replacement(
        "log",
        "losses.CrossEntropyLoss or BCEWithLogitsLoss on logits, or "
        "losses.GaussianNLLLoss for a variance",
    ),
    "log10": _Replacement("log"),
    "log1p": _Replacement("log1p", "losses.MSLELoss"),
    "log2": _Replacement("log"),
    "log_sigmoid": _Replacement("log_sigmoid"),
    "logit": _Replacement("logit"),
    "logsumexp": _Replacement("logsumexp"),
    "mse_loss": _Replacement(loss="losses.HuberLoss"),
    "nll_loss_forward": _Replacement(
        loss="losses.CrossEntropyLoss, which gives 0 for a batch of none"
    ),
    "norm": _Replacement("norm"),
    "pow": _Replacement("power", "losses.FocalLoss, or functional.power"),
    "reciprocal": _Replacement("reciprocal"),
    "rsqrt": _Replacement("rsqrt"),
    "softplus": _Replacement("softplus"),
    "sqrt": _Replacement("sqrt", "losses.RMSELoss"),
    "std": _Replacement("std"),
    "var": _Replacement("var"),
}


def action_for(cause: Cause, failed: FailedOperation, has_columns: bool) -> str:
    """Return what to do about an operation that failed.

    Parameters
    ----------
    cause : str
        Cause of the failure.
    failed : FailedOperation
        The operation.
    has_columns : bool
        Whether single columns of the batch are to blame.

    Returns
    -------
    str
        One sentence, which names a replacement from sknan where there is one.
    """
    name = failed.operation.removeprefix("aten.").rstrip("_")  # log_ works in place
    function, loss = _REPLACEMENTS.get(name, _Replacement())
    if has_columns and cause == "activation" and function:
        return (
            f"Clean these columns, or use sknan.functional.{function}, whose value "
            "and gradient stay finite."
        )
    if cause == "loss" and loss:
        return f"Use sknan.{loss}."
    if cause in ("activation", "architecture", "loss") and function:
        return f"Use sknan.functional.{function}, whose value and gradient stay finite."
    if cause == "architecture" and not failed.depends_on_batch:
        return "Choose another initialization, or sknan.functional.normalize."
    return ACTIONS[cause]


def remedy_for_check(
    cause: Cause, failed: FailedOperation, error: Exception, n_rows: int
) -> tuple[Cause, str]:
    """Return cause and action for a call that has raised an exception.

    Parameters
    ----------
    cause : str
        Cause of a failure at this place.
    failed : FailedOperation
        The call.
    error : Exception
        The exception, which some values of its arguments would not give.
    n_rows : int
        Number of rows in the batch.

    Returns
    -------
    cause : str
    action : str
        One sentence.
    """
    name, message = failed.operation.removeprefix("aten."), str(error)
    if n_rows == 1:
        return "architecture", (
            "Choose a batch_size that leaves no batch of one row, or leave it out with "
            "iterator_train__drop_last=True."
        )
    if isinstance(error, IndexError):
        return "data", (
            "Check that codes in X are below num_embeddings, and class labels in y "
            "below the number of outputs."
        )
    if name == "binary_cross_entropy" and "target" in message:
        return "data", "Check y: each target must be a probability, in [0, 1]."
    if name == "binary_cross_entropy":
        return cause, (
            "Use torch.nn.BCEWithLogitsLoss on logits, or end the network with a "
            "sigmoid."
        )
    if "support" in message and "value argument" in message:
        return "data", "Check that y lies in the support of the distribution."
    if "linalg" in name or "cholesky" in name or "PositiveDefinite" in message:
        return "architecture", (
            "Keep the matrix away from the edge, for example by adding a small "
            "multiple of the identity."
        )
    if "constraint" in message:
        return cause, (
            "Keep the parameter inside its domain, for example a scale by "
            "torch.nn.functional.softplus(x) + 1e-6."
        )
    return cause, "Keep the arguments inside the domain that this call checks."
