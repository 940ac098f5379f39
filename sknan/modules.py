"""The default network."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["TabularMLP"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "selu": nn.SELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "tanh": nn.Tanh,
}


class TabularMLP(nn.Module):
    """Multilayer perceptron for tables.

    Parameters
    ----------
    n_features_in : int
        Number of columns of the input.
    n_outputs : int
        Number of outputs: classes (as logits) or targets.
    width : int, default=128
        Units in each hidden layer.
    depth : int, default=2
        Number of hidden layers; 0 makes a linear model.
    dropout : float, default=0.0
        Share of hidden units set to zero in training, in [0, 1).
    activation : {"relu", "gelu", "selu", "silu", "mish", "tanh"}, default="relu"
        Nonlinearity after each hidden layer.

    Raises
    ------
    ValueError
        If ``activation`` is unknown, ``width`` is below 1, ``depth`` is negative or
        ``dropout`` lies outside [0, 1).

    Notes
    -----
    Shape: input (n_samples, n_features_in), output (n_samples, n_outputs), both float.

    Examples
    --------
    >>> import torch
    >>> from sknan.modules import TabularMLP
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
    ) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            known = ", ".join(repr(name) for name in _ACTIVATIONS)
            raise ValueError(f"activation must be one of {known}, got {activation!r}.")
        if width < 1 or depth < 0:
            raise ValueError(
                f"width must be at least 1 and depth at least 0, got width={width} and "
                f"depth={depth}."
            )
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}.")
        layers: list[nn.Module] = []
        n_in = n_features_in
        for _ in range(depth):
            layers += [nn.Linear(n_in, width), _ACTIVATIONS[activation]()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            n_in = width
        self.hidden = nn.Sequential(*layers)
        self.head = nn.Linear(n_in, n_outputs)

    def forward(self, X: Tensor) -> Tensor:
        """Map (n_samples, n_features_in) to (n_samples, n_outputs)."""
        # In this plain form the layers can be passed without autograd (`_layerwise`).
        return self.head(self.hidden(X))  # type: ignore[no-any-return]
