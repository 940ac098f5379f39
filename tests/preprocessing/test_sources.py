"""Input columns of the outputs of transformers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer, make_column_transformer
from sklearn.feature_selection import VarianceThreshold
from sklearn.impute import SimpleImputer
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    OneHotEncoder,
    PolynomialFeatures,
    StandardScaler,
)

from sknan import NaNImputer, tabular_pipeline
from sknan.preprocessing._sources import sources_of

# The names are prefixes of each other and of the names of outputs.
X = pd.DataFrame(
    {
        "a": [1.0, np.nan, 3.0, 4.0],
        "a_b": ["b", "c", "b_c", "b"],
        "a_b_c": [0.5, 0.1, np.nan, 0.2],
    }
)
NUMBERS = ["a", "a_b_c"]
Y = [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("transformer", "inputs"),
    [
        (
            make_column_transformer(
                (OneHotEncoder(), ["a_b"]),
                (NaNImputer(add_indicator=True), NUMBERS),
            ),
            [(1,)] * 3 + [(0,), (2,)] * 2,
        ),
        (
            ColumnTransformer(
                [("drop", "drop", [1]), ("keep", "passthrough", slice(2, 3))],
                remainder=SimpleImputer(),
            ),
            [(2,), (0,)],
        ),
        (
            make_pipeline(
                make_column_transformer((SimpleImputer(), NUMBERS)),
                PolynomialFeatures(include_bias=False, interaction_only=True),
                FeatureUnion(
                    [
                        ("z", StandardScaler()),
                        (
                            "bins",
                            KBinsDiscretizer(
                                2, quantile_method="averaged_inverted_cdf"
                            ),
                        ),
                    ]
                ),
                VarianceThreshold(),
            ),
            [(0,), (2,), (0, 2), *[(0,)] * 2, *[(2,)] * 2, *[(0, 2)] * 2],
        ),
        (
            tabular_pipeline("regressor")[:-1],
            [(0,), (2,), (1,), (1,), (1,), (0,), (2,)],
        ),
    ],
)
def test_outputs_are_traced_to_their_inputs(transformer, inputs):
    output = transformer.fit_transform(X, Y)
    found = sources_of(transformer, list(X))
    assert found.inputs == inputs
    assert output.shape[1] == len(found.names)
    if hasattr(output, "columns"):
        assert list(output.columns) == found.names


def test_a_transformer_without_names_is_refused_with_a_remedy():
    numbers = X[NUMBERS]
    silent = FunctionTransformer(np.log1p).fit(numbers)
    with pytest.raises(ValueError, match="one-to-one") as caught:
        sources_of(silent, NUMBERS)
    assert str(caught.value) == (
        "FunctionTransformer does not name its outputs, so that they cannot be traced "
        "to columns of X. Give it the method get_feature_names_out; for a "
        "FunctionTransformer, pass feature_names_out='one-to-one'."
    )
    named = FunctionTransformer(np.log1p, feature_names_out="one-to-one").fit(numbers)
    assert sources_of(named, NUMBERS).inputs == [(0,), (1,)]
