"""Preparation of a table as torch modules: numbers in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sknan._utils.validation import FLOAT32_MAX, FLOAT64_MAX
from sknan.preprocessing._imputer import NaNImputer
from sknan.preprocessing._scaler import SafeScaler

# A column of larger numbers is divided by 4, as in SafeScaler.
_HUGE = 2.0**969

# Share of the bound below which the bounded value is the value itself in float64.
_IDENTITY = 2.0**-27


class Encode(nn.Module):
    """Sentinels of columns of numbers, and a column for each single value or category.

    Parameters
    ----------
    numbers : sequence of int
        Columns of numbers.
    sentinels : sequence of sequence of float
        Numbers that mean a missing value, for each of these columns.
    categories : sequence of (int, int)
        Column and code of each output that is 1 for one category.
    offsets : ndarray of shape (n_numbers,) or None
        Number that is subtracted from each column of numbers.
    single_values : sequence of (int, float)
        Place among the columns of numbers and value, after the subtraction, of each
        output that is 1 for one value.
    """

    columns: Tensor
    offsets: Tensor
    places: Tensor
    values: Tensor
    sentinels: Tensor
    sources: Tensor
    codes: Tensor

    def __init__(
        self,
        numbers: Sequence[int],
        sentinels: Sequence[Sequence[float]],
        categories: Sequence[tuple[int, int]],
        offsets: np.ndarray | None,
        single_values: Sequence[tuple[int, float]],
    ) -> None:
        super().__init__()
        n_most = max(map(len, sentinels), default=0)
        self._has_sentinels, self._has_codes = n_most > 0, len(categories) > 0
        padded = [[*s, *[np.nan] * (n_most - len(s))] for s in sentinels]
        of_column = torch.tensor(padded, dtype=torch.float64)
        self.register_buffer("columns", torch.tensor(numbers, dtype=torch.int64))
        self.register_buffer("sentinels", of_column.reshape(len(numbers), n_most))
        self._has_offsets = offsets is not None
        if offsets is not None:
            self.register_buffer("offsets", torch.from_numpy(offsets))
        self._has_values = len(single_values) > 0
        if self._has_values:
            places, values = zip(*single_values, strict=True)
            self.register_buffer("places", torch.tensor(places))
            self.register_buffer("values", torch.tensor(values, dtype=torch.float32))
        pairs = torch.tensor(categories, dtype=torch.int64).reshape(-1, 2)
        self.register_buffer("sources", pairs[:, 0].clone())
        self.register_buffer("codes", pairs[:, 1].double())

    def forward(self, X: Tensor) -> Tensor:
        """Encode (n_samples, n_columns) as (n_samples, n_encoded), float64."""
        X = X.double()
        numbers = X.index_select(1, self.columns)
        is_known = numbers.abs() <= FLOAT32_MAX
        if self._has_sentinels:
            is_sentinel = numbers.unsqueeze(2) == self.sentinels
            is_known = is_known & ~is_sentinel.any(dim=2)
        numbers = torch.where(is_known, numbers, torch.nan)
        if self._has_offsets:
            numbers = numbers - self.offsets
        encoded = [numbers]
        if self._has_codes:
            codes = torch.where(X.isnan(), -1.0, X).index_select(1, self.sources)
            encoded.append((codes == self.codes).double())
        if self._has_values:
            cells = numbers.index_select(1, self.places).float()
            encoded.append((cells == self.values).double())
        return torch.cat(encoded, dim=1)


class Impute(nn.Module):
    """Imputation of a fitted :class:`~sknan.NaNImputer`."""

    columns: Tensor
    values: Tensor
    flagged: Tensor

    def __init__(self, imputer: NaNImputer) -> None:
        super().__init__()
        kept = imputer._kept()
        self._marker = None if imputer._takes_nan() else float(imputer.missing_values)
        dtype = imputer._output_dtype()
        self._dtype = None if dtype is None else getattr(torch, dtype.name)
        values = imputer.statistics_[kept].astype(np.float64)
        flagged = imputer.indicator_.features_ if imputer.add_indicator else []
        self._has_flags = len(flagged) > 0
        self.register_buffer("columns", torch.from_numpy(np.flatnonzero(kept)))
        self.register_buffer("values", torch.from_numpy(values))
        self.register_buffer("flagged", torch.tensor(flagged, dtype=torch.int64))

    def forward(self, X: Tensor) -> Tensor:
        """Impute (n_samples, n_features); NaN where ``transform`` raises an error."""
        dtype = self._dtype or X.dtype
        largest, is_known = torch.finfo(dtype).max, X.isfinite()
        values = self.values
        if largest < torch.finfo(X.dtype).max:
            is_known = X.abs() <= largest
        if dtype != torch.float64:
            values = values.clamp(-largest, largest).to(dtype)
        if self._marker is not None:
            is_known = (is_known & (self._marker != X)) | ~X.isfinite()
            X = torch.where(X.isfinite(), X, torch.nan)
        cells = X.to(dtype).index_select(1, self.columns)
        is_kept = is_known.index_select(1, self.columns)
        filled = torch.where(is_kept, cells, values)
        if not self._has_flags:
            return filled
        missing = ~is_known.index_select(1, self.flagged)
        return torch.cat([filled, missing.to(dtype)], dim=1)


class Scale(nn.Module):
    """Scaling of a fitted :class:`~sknan.SafeScaler`, in float64."""

    largest: Tensor
    shrink: Tensor
    center: Tensor
    scale: Tensor
    is_constant: Tensor

    def __init__(self, scaler: SafeScaler) -> None:
        super().__init__()
        self._bound = scaler.bound
        center, scale = np.nan_to_num(scaler.center_), scaler.scale_
        is_constant = scale == 0
        center = np.where(is_constant, 0.0, center)
        shrink = np.where(np.maximum(np.abs(center), scale) > _HUGE, 0.25, 1.0)
        smallest = np.finfo(np.float64).smallest_subnormal
        scale = np.where(is_constant, 1.0, np.maximum(scale * shrink, smallest))
        # A buffer, because ONNX has other constants in float32.
        largest = torch.tensor(FLOAT64_MAX, dtype=torch.float64)
        self.register_buffer("largest", largest)
        self.register_buffer("shrink", torch.from_numpy(shrink))
        self.register_buffer("center", torch.from_numpy(center * shrink))
        self.register_buffer("scale", torch.from_numpy(scale))
        self.register_buffer("is_constant", torch.from_numpy(is_constant))

    def forward(self, X: Tensor) -> Tensor:
        """Scale (n_samples, n_features); NaN stays NaN."""
        X = X if X.dtype == torch.float32 else X.double()
        z = (X.double() * self.shrink - self.center) / self.scale
        z = torch.where(self.is_constant & ~X.isnan(), 0.0, z)
        # Comparisons, since clamp and maximum lose NaN in some runtimes.
        if self._bound is None:
            is_narrow = X.dtype == torch.float32
            largest = FLOAT32_MAX if is_narrow else self.largest
            z = torch.where(z > largest, largest, z)
            return torch.where(z < -largest, -largest, z).to(X.dtype)
        size, small = z.abs(), self._bound * _IDENTITY
        is_small = size < small
        ratio = self._bound / torch.where(is_small, small, size)
        bounded = self._bound / torch.sqrt(1.0 + ratio * ratio)
        bounded = torch.where(z < 0, -bounded, bounded)
        return torch.where(is_small, z, bounded).to(X.dtype)
