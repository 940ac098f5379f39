"""Default network for tables, and the periodic embedding of its input."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Sized

import torch
from torch import Tensor, nn

from sknan._utils.validation import is_integer, is_number, is_one_of
from sknan.nets._dropout import Dropout

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "selu": nn.SELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "tanh": nn.Tanh,
}

# At larger values float32 cannot represent the phase of a cosine.
_LARGEST_PHASE = 1e6


def _check_count(name: str, value: object, least: int) -> None:
    if not is_integer(value) or value < least:  # type: ignore[operator]
        raise ValueError(
            f"{name} must be an integer of at least {least}, got {value!r}."
        )


class PeriodicEmbedding(nn.Module):
    r"""Learned periodic features of numeric columns, appended to the input.

    Layers of ReLUs learn a spike or a threshold within a column slowly. A sum of
    cosines can represent it from the first step.

    Parameters
    ----------
    n_features_in : int
        Number of columns of the input.
    columns : sequence of int or None, default=None
        Columns to embed; None for all. Columns of two values do not benefit.
    n_frequencies : int, default=16
        Number of cosines for each column.
    d_embedding : int, default=3
        Number of outputs for each column, in addition to its value.
    frequency_range : tuple of two floats, default=(0.1, 3.0)
        Lowest and highest standard deviation of the initial frequencies, in waves per
        unit of the input. The others are spaced geometrically between them.

    Raises
    ------
    ValueError
        If a number is below 1, if a column does not exist or is repeated, if there is
        no column, or if the range does not consist of positive numbers.

    Notes
    -----
    Shape: input (n_samples, n_features_in), output (n_samples, n_features_in +
    d_embedding * len(columns)), both float. The unchanged input is followed by the
    embeddings, column by column.

    For a value :math:`x` the embedding is :math:`A \cos(2 \pi f x + b) + c`. This is
    the "PBLD" embedding of [1]_ (section 3, "Better numerical embeddings"), a
    simplified form of the "PL" embedding of [2]_ (equation 2). :math:`A, f, b, c` are
    learned for each column. The initial :math:`b` is uniform in :math:`(-\pi, \pi)`,
    :math:`A` and
    :math:`c` are uniform in :math:`\pm 1 / \sqrt{n_\mathrm{frequencies}}`, and
    :math:`f` is normal. In [1]_ and [2]_ all frequencies have one standard deviation,
    which must be tuned to the data. Here the standard deviations cover a range, so that
    the embedding fits both slow trends and narrow spikes.

    The input is clamped to ±1e6 before the cosine, so that no finite value overflows.

    References
    ----------
    .. [1] D. Holzmüller, L. Grinsztajn and I. Steinwart (2024). Better by default:
       strong pre-tuned MLPs and boosted trees on tabular data. arXiv:2407.04491v3.
    .. [2] Y. Gorishniy, I. Rubachev and A. Babenko (2022). On embeddings for numerical
       features in tabular deep learning. arXiv:2203.05556v4.

    Examples
    --------
    >>> import torch
    >>> from sknan.nets import PeriodicEmbedding
    >>> PeriodicEmbedding(3, columns=[0, 2])(torch.zeros(5, 3)).shape
    torch.Size([5, 9])
    """

    columns: Tensor

    def __init__(
        self,
        n_features_in: int,
        columns: Sequence[int] | None = None,
        *,
        n_frequencies: int = 16,
        d_embedding: int = 3,
        frequency_range: tuple[float, float] = (0.1, 3.0),
    ) -> None:
        super().__init__()
        _check_count("n_features_in", n_features_in, 1)
        _check_count("n_frequencies", n_frequencies, 1)
        _check_count("d_embedding", d_embedding, 1)
        is_pair = isinstance(frequency_range, Sequence) and len(frequency_range) == 2
        is_pair = is_pair and all(map(is_number, frequency_range))
        lowest, highest = frequency_range if is_pair else (0.0, 0.0)
        if not 0.0 < lowest <= highest < math.inf:
            raise ValueError(
                "frequency_range must be two finite numbers above 0, the lower one "
                f"first, got {frequency_range!r}."
            )
        given = range(n_features_in) if columns is None else columns
        chosen = list(given) if isinstance(given, Iterable) else []
        is_distinct = all(map(is_integer, chosen)) and len(set(chosen)) == len(chosen)
        if not (chosen and is_distinct):
            raise ValueError(
                f"columns must be distinct integers, at least one, got {columns!r}."
            )
        if min(chosen) < 0 or max(chosen) >= n_features_in:
            raise ValueError(
                f"columns must be between 0 and {n_features_in - 1}, got {chosen}."
            )
        n_columns = len(chosen)
        self.d_embedding = d_embedding
        self.register_buffer("columns", torch.tensor(chosen))
        spread = torch.logspace(math.log10(lowest), math.log10(highest), n_frequencies)
        self.frequency = nn.Parameter(torch.randn(n_columns, n_frequencies) * spread)
        phase = torch.empty(n_columns, n_frequencies).uniform_(-math.pi, math.pi)
        self.phase = nn.Parameter(phase)
        bound = 1.0 / math.sqrt(n_frequencies)
        weight = torch.empty(n_columns, n_frequencies, d_embedding)
        self.weight = nn.Parameter(weight.uniform_(-bound, bound))
        bias = torch.empty(n_columns, 1, d_embedding)
        self.bias = nn.Parameter(bias.uniform_(-bound, bound))

    def extra_repr(self) -> str:
        """Return the sizes, for ``repr``."""
        n_columns, n_frequencies = self.frequency.shape
        return (
            f"{n_columns} columns, n_frequencies={n_frequencies}, "
            f"d_embedding={self.d_embedding}"
        )

    def forward(self, X: Tensor) -> Tensor:
        """Append the embeddings to ``X`` of shape (n_samples, n_features_in)."""
        x = X.index_select(1, self.columns).clamp(-_LARGEST_PHASE, _LARGEST_PHASE)
        angle = x.unsqueeze(2) * (2.0 * math.pi * self.frequency) + self.phase
        waves = angle.cos().transpose(0, 1)  # (n_columns, n_samples, n_frequencies)
        embedded = torch.baddbmm(self.bias, waves, self.weight)
        return torch.cat([X, embedded.transpose(0, 1).flatten(1)], dim=1)


class TabularMLP(nn.Module):
    """Multilayer perceptron for tables.

    Parameters
    ----------
    n_features_in : int
        Number of columns of the input.
    n_outputs : int
        Number of outputs: logits of classes, or targets.
    width : int, default=128
        Number of units in each hidden layer.
    depth : int, default=2
        Number of hidden layers. 0 gives a linear model.
    dropout : float, default=0.0
        Share of hidden units that are set to zero in training, in [0, 1).
    activation : {"relu", "gelu", "selu", "silu", "mish", "tanh"}, default="relu"
        Nonlinearity after each hidden layer.
    n_frequencies : int, default=0
        Number of cosines for each numeric column in a :class:`PeriodicEmbedding` before
        the first layer. 0 omits the embedding.
    frequency_range : tuple of two floats, default=(0.1, 3.0)
        Range of the frequencies of the embedding, in waves per unit of the input.
    numeric_columns : sequence of int or None, default=None
        Columns to embed; None for all. The estimators pass the columns with more than
        two values.

    Raises
    ------
    ValueError
        If ``activation`` is unknown, ``width`` is no integer of at least 1, ``depth``
        or ``n_frequencies`` none of at least 0, ``dropout`` is no number in [0, 1), or
        :class:`PeriodicEmbedding` raises an error for its parameters.

    Notes
    -----
    Shape: input (n_samples, n_features_in), output (n_samples, n_outputs), both float.

    Examples
    --------
    >>> import torch
    >>> from sknan.nets import TabularMLP
    >>> TabularMLP(3, 2, width=8)(torch.zeros(5, 3)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        n_features_in: int,
        n_outputs: int,
        *,
        width: int = 128,
        depth: int = 2,
        dropout: float = 0.0,
        activation: str = "relu",
        n_frequencies: int = 0,
        frequency_range: tuple[float, float] = (0.1, 3.0),
        numeric_columns: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if not is_one_of(activation, _ACTIVATIONS):
            known = ", ".join(repr(name) for name in _ACTIVATIONS)
            raise ValueError(f"activation must be one of {known}, got {activation!r}.")
        _check_count("n_features_in", n_features_in, 1)
        _check_count("n_outputs", n_outputs, 1)
        _check_count("width", width, 1)
        _check_count("depth", depth, 0)
        _check_count("n_frequencies", n_frequencies, 0)
        if not (is_number(dropout) and 0.0 <= dropout < 1.0):
            raise ValueError(f"dropout must be a number in [0, 1), got {dropout!r}.")
        layers: list[nn.Module] = []
        n_in = n_features_in
        has_none = isinstance(numeric_columns, Sized) and not len(numeric_columns)
        if n_frequencies and not has_none:
            embedding = PeriodicEmbedding(
                n_features_in,
                numeric_columns,
                n_frequencies=n_frequencies,
                frequency_range=frequency_range,
            )
            layers.append(embedding)
            n_in += embedding.bias.numel()
        for _ in range(depth):
            layers += [nn.Linear(n_in, width), _ACTIVATIONS[activation]()]
            if dropout:
                layers.append(Dropout(dropout))
            n_in = width
        self.hidden = nn.Sequential(*layers)
        self.head = nn.Linear(n_in, n_outputs)

    def forward(self, X: Tensor) -> Tensor:
        """Map (n_samples, n_features_in) to (n_samples, n_outputs)."""
        return self.head(self.hidden(X))  # type: ignore[no-any-return]
