"""Recommended action for a cause and for the pattern in which an operation failed."""

from __future__ import annotations

import re
from typing import NamedTuple

from sknan._utils.thresholds import OVERFLOWS_SQUARED
from sknan.diagnosis._evidence import (
    CRITERION,
    UNWRITTEN,
    FailedOperation,
    Places,
)
from sknan.diagnosis._report import Cause
from sknan.diagnosis._sources import sources_of

ACTIONS: dict[Cause, str] = {
    "data": (
        "Clean and impute the inputs first: "
        'make_pipeline(NaNImputer(dtype="float32"), SafeScaler(), net).'
    ),
    "learning_rate": (
        "Lower lr; for an estimator, sknan.find_learning_rate suggests one."
    ),
    "gradient": (
        "Scale inputs and targets, choose an initialization or a cell that does not "
        "amplify, clip the gradients with clip_norm=1.0 or less, or lower lr."
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

_CLEAN_TARGET = "Correct these targets, or leave out their rows."

# Functions of sknan by the operations of torch that they replace.
FUNCTIONS = {
    "_log_softmax": "log_softmax",
    "_softmax": "softmax",
    "acos": "acos",
    "asin": "asin",
    "atanh": "atanh",
    "div": "divide",
    "hypot": "hypot",
    "log": "log",
    "log10": "log",
    "log1p": "log1p",
    "log2": "log",
    "logit": "logit",
    "logsumexp": "logsumexp",
    "pow": "power",
    "reciprocal": "reciprocal",
    "sqrt": "sqrt",
    "std": "std",
    "var": "var",
}


_LOGARITHMS = ("log", "log10", "log2", "xlogy")


class Pattern(NamedTuple):
    """An operation with its surroundings, and what replaces all of them.

    ``arguments`` is searched for in the origins of the arguments, ``used_by`` in the
    operations that followed, and ``log_of`` in the sources of the argument of a
    logarithm, which failed or followed. Empty expressions match everything.
    """

    operations: str
    advice: str
    arguments: str = ""
    used_by: str = ""
    is_in_criterion: bool | None = None
    log_of: str = ""

    def fits(self, failed: FailedOperation) -> bool:
        """Whether an operation has failed in this pattern."""
        in_criterion = failed.module == CRITERION
        return (
            failed.name in self.operations.split()
            and self.is_in_criterion in (None, in_criterion)
            and bool(re.search(self.arguments, "; ".join(failed.arguments)))
            and bool(re.search(self.used_by, "; ".join(failed.used_by)))
            and bool(re.search(self.log_of, _sources_of_logarithm(failed)))
        )


def _sources_of_logarithm(failed: FailedOperation) -> str:
    """Return the sources of the argument of a logarithm, which failed or followed."""
    if failed.name in _LOGARITHMS:
        argument = (failed.arguments or ("",))[-1]
    else:
        users = (user for user in failed.used_by if user.startswith("log("))
        argument = next(users, "")[len("log(") : -1]
    return " ".join(sources_of(argument))


_EPS = r"(?:(?:add|clamp|clamp_min|maximum)\()*"  # around a denominator
_LAST = rf"(?:^|; ){_EPS}"  # beginning of the last argument of an operation
_SQUARES = r"(?:pow|mul|square)\b"
_OF_SIGMOID = r"^(?:\+ )?(?:1-sigmoid|sigmoid)(?: sigmoid)?$"
_LENGTH = rf"(?:(?:linalg_vector_)?norm\b|sqrt\(sum\({_SQUARES})"
_SPREAD = r"(?:std\b|sqrt\(var\b)"

_ONTO = r"^(?:(?:add|clamp|clamp_min|maximum)\([^;]*; )*"  # around what follows
_DIFFERENCE = (
    "Use the difference of two sknan.functional.log in place of the logarithm of a "
    "quotient."
)

# The first pattern that fits gives the advice.
PATTERNS = (
    Pattern("div reciprocal", _DIFFERENCE, used_by=rf"{_ONTO}log(?:2|10)?\("),
    Pattern(
        "exp",
        "Use torch.tanh.",
        used_by=r"(?:^|; )div\(sub\(exp\b[^;]*exp\b[^;]*, add\(exp\b",
    ),
    Pattern(
        "exp",
        "Use torch.sigmoid.",
        used_by=r"^add\(exp\b[^;]*; div\(exp\b",
    ),
    Pattern(
        "div reciprocal",
        "Use sknan.functional.cosine_similarity.",
        rf"{_LAST}mul\({_LENGTH}.*, {_LENGTH}[^;]*$",
    ),
    Pattern(
        "div reciprocal",
        "Use sknan.functional.normalize in place of the vector and its division.",
        rf"{_LAST}{_LENGTH}[^;]*$",
    ),
    Pattern(
        "div reciprocal",
        "Use sknan.functional.standardize in place of the difference and its division.",
        rf"{_LAST}{_SPREAD}[^;]*$",
    ),
    Pattern(
        "rsqrt",
        "Use sknan.functional.normalize in place of the vector and its factor.",
        rf"^{_EPS}sum\({_SQUARES}",
    ),
    Pattern(
        "div",
        "Use sknan.losses.MAPELoss with the floor that your targets need, or "
        "sknan.functional.divide.",
        r"; (?:abs\()?target\)?$",
        is_in_criterion=True,
    ),
    Pattern("sqrt", "Use sknan.functional.norm.", rf"^{_EPS}sum\({_SQUARES}"),
    Pattern("sqrt", "Use sknan.functional.std.", rf"^{_EPS}var\b"),
    Pattern(
        "sqrt",
        "Use sknan.losses.RMSELoss.",
        rf"^{_EPS}(?:mse_loss\b|mean\({_SQUARES}\(sub\([^;]*target\))",
        is_in_criterion=True,
    ),
    Pattern(
        " ".join(_LOGARITHMS),
        "Use sknan.losses.BCEWithLogitsLoss on the logits, or "
        "sknan.functional.log_sigmoid in place of sigmoid and logarithm.",
        r"^(?!.*\b(?:gather|index_select|take)\()",
        is_in_criterion=True,
        log_of=_OF_SIGMOID,
    ),
    Pattern(
        "log1p",
        "Use sknan.functional.log_sigmoid(-x) in place of log(1 - sigmoid(x)).",
        r"^neg\(sigmoid\b",
    ),
    Pattern(
        " ".join(_LOGARITHMS),
        "Use sknan.functional.log_sigmoid(x) in place of log(sigmoid(x)), and "
        "log_sigmoid(-x) in place of log(1 - sigmoid(x)).",
        log_of=_OF_SIGMOID,
    ),
    Pattern(
        " ".join(_LOGARITHMS),
        "Use sknan.functional.log_softmax in place of softmax and logarithm.",
        log_of=r"^(?:\+ )?_softmax$",
    ),
    Pattern(
        "cosh",
        "Use sknan.losses.LogCoshLoss.",
        used_by=r"^log\(cosh\b",
        is_in_criterion=True,
    ),
    Pattern(
        "cosh",
        "Write log(cosh(x)) as x + sknan.functional.softplus(-2 * x) - math.log(2).",
        used_by=r"^log\(cosh\b",
    ),
    Pattern(
        "exp",
        "Use sknan.functional.softmax.",
        used_by=r"(?:^|; )div\(exp\b.*, sum\(exp\b",
    ),
    Pattern("exp", "Use torch.logcumsumexp.", used_by=r"; log\(cumsum\(exp\b"),
    Pattern("log", "Use torch.logcumsumexp.", r"^cumsum\(exp\b"),
    Pattern(
        "exp",
        "Use sknan.functional.softplus.",
        used_by=r"log\(add\(exp\b(?!.*\bexp\b)|^log1p\(exp\b",
    ),
    Pattern(
        f"exp {' '.join(_LOGARITHMS)}",
        "Use sknan.functional.logsumexp of the logarithms of the terms, in place of "
        "exp, sum and log.",
        log_of=r"^\+ (?:.* )?exp\b",
    ),
    Pattern(
        f"exp {' '.join(_LOGARITHMS)}",
        "Write log(exp(x)) as x, and the logarithm of a product as the sum of the "
        "logarithms of its factors.",
        log_of=r"(?:^| )exp\b",
    ),
    Pattern("log log10 log2", _DIFFERENCE, rf"^{_EPS}div\("),
    Pattern(
        "log log10 log2",
        "Use the sum of sknan.functional.log in place of the logarithm of a product.",
        r"^prod\(",
    ),
    Pattern(
        "exp expm1",
        "Bound the exponent, as in exp(sknan.functional.soft_clamp(x, high=10.0)).",
        is_in_criterion=True,
    ),
    Pattern(
        "exp exp2 expm1",
        "Use sknan.functional.softplus, which grows like its argument, or bound the "
        "exponent.",
    ),
    Pattern(
        "rsqrt",
        "Use sknan.functional.reciprocal(sknan.functional.sqrt(x)).",
    ),
    Pattern(
        "pow",
        "Use sknan.functional.power with the positive exponent, and divide by it with "
        "sknan.functional.reciprocal.",
        r"; -[\d.]+$",
    ),
    Pattern(
        "logsumexp logaddexp logcumsumexp",
        "Use sknan.functional.logsumexp, and put 0 with torch.where in the place of "
        "its result where all arguments are masked.",
    ),
    Pattern(
        "_ctc_loss",
        "Pass zero_infinity=True to CTCLoss, or leave out the rows whose label is "
        "longer than their signal.",
    ),
    Pattern(
        "binary_cross_entropy",
        "Use sknan.losses.BCEWithLogitsLoss on the logits, without a sigmoid.",
    ),
    Pattern(
        "nll_loss_forward nll_loss2d_forward",
        "Use sknan.losses.CrossEntropyLoss, which is 0 for a batch without labels.",
        is_in_criterion=True,
    ),
)

# Losses of torch that are replaced by the loss of the same name.
SAME_LOSSES = (
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "GaussianNLLLoss",
    "KLDivLoss",
    "NLLLoss",
    "PoissonNLLLoss",
)


def action_for(cause: Cause, failed: FailedOperation | None, places: Places) -> str:
    """Return what to do about a failed step.

    Parameters
    ----------
    cause : str
        Cause of the failure.
    failed : FailedOperation or None
        Operation that failed, if it is known.
    places : Places
        Rows and columns that are to blame.

    Returns
    -------
    str
        One sentence, which names a replacement from sknan where there is one.
    """
    if places.unusable == "targets":
        return _CLEAN_TARGET
    if failed is None or cause not in ("activation", "architecture", "loss"):
        return ACTIONS[cause]
    action = _action_for_operation(failed)
    if cause == "activation" and places.columns:
        return f"Clean these columns, or {action[0].lower()}{action[1:]}"
    return action


def _is_of_prediction(failed: FailedOperation) -> bool:
    """Whether a loss gave an operation numbers outside its domain from the network.

    Probabilities, exponentials and numbers that are all at least 0 are positive by
    construction, apart from rounding: they are no predictions of any size.
    """
    is_target = any(re.match(r"target\b", made) for made in failed.arguments)
    is_negative = failed.domain is not None and failed.domain[0] < 0.0
    sources = {s.removeprefix("1-") for s in sources_of(", ".join(failed.arguments))}
    is_bounded = not sources.isdisjoint(("_softmax", "exp", "sigmoid"))
    return failed.phase == "loss" and is_negative and not (is_target or is_bounded)


def _action_for_operation(failed: FailedOperation) -> str:
    """Return what to do about an operation, from the pattern in which it failed."""
    if failed.is_in_hook:
        return "Correct this hook, which was given a finite gradient."
    if failed.name in UNWRITTEN:
        return (
            "Write all numbers of the tensor before they are read, or create it with "
            "torch.zeros."
        )
    if not failed.depends_on_batch:
        return (
            "Choose another initialization: the operation depends on weights and "
            "constants alone, not on the data."
        )
    if failed.divides_by_zero_weight:
        return (
            "Choose another initialization: the denominator depends on weights alone, "
            "and is 0 for all rows."
        )
    if failed.layer in SAME_LOSSES:
        return f"Use sknan.losses.{failed.layer}."
    pattern = next((p for p in PATTERNS if p.fits(failed)), None)
    if pattern is not None:
        return pattern.advice
    if failed.largest >= OVERFLOWS_SQUARED:
        return (
            f"Keep the arguments of {failed.name} below 1e18: scale them, for example "
            "by a normalization layer, or bound them by torch.tanh."
        )
    if failed.layer.startswith(("MultiheadAttention", "Transformer")):
        return "Leave at least one key of each row unmasked, such as the first."
    if "Norm" in failed.layer:
        return f"Give {failed.layer} an eps above 0, and inputs of moderate size."
    if failed.has_too_few_elements and failed.name not in FUNCTIONS:
        return "Leave out the term where there are no elements to summarize."
    if "linalg" in failed.name and "norm" not in failed.name:
        return (
            "Leave out these rows, or add distinct small numbers to the diagonal of "
            "the matrix."
        )
    function = FUNCTIONS.get(failed.name)
    if failed.name == "pow" and re.search(r"; \d+$", "; ".join(failed.arguments)):
        function = None  # an overflow, because the power is defined for every number
    if function in ("log", "log1p", "power", "sqrt") and _is_of_prediction(failed):
        return (
            f"Use sknan.functional.softplus to make the argument of {failed.name} "
            f"positive, or sknan.functional.{function}."
        )
    if function is not None:
        return f"Use sknan.functional.{function}, whose value and gradient stay finite."
    return (
        f"Keep the argument of {failed.name} where its value and gradient are finite, "
        "for example with torch.clamp."
    )


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
