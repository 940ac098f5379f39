"""Criteria with a gradient in closed form, and options that rule it out."""

import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV
from torch import nn

import sknan.losses as sl
from sknan import BatchedGridSearchCV, StableNetClassifier
from sknan.losses._registry import closed_form_of


class Subclass(sl.MSELoss):
    pass


@pytest.mark.parametrize(
    ("criterion", "form"),
    [
        (sl.CrossEntropyLoss(), "cross_entropy"),
        (nn.CrossEntropyLoss(), "cross_entropy"),
        (sl.BCEWithLogitsLoss(), "binary_cross_entropy"),
        (nn.BCEWithLogitsLoss(pos_weight=torch.ones(2)), None),
        (sl.MSELoss(), "squared_error"),
        (nn.MSELoss(), "squared_error"),
        (sl.MSELoss(reduction="sum"), None),
        (sl.CrossEntropyLoss(reduction="none"), None),
        (sl.CrossEntropyLoss(ignore_index=1), None),
        (sl.CrossEntropyLoss(label_smoothing=0.1), None),
        (nn.CrossEntropyLoss(weight=torch.ones(2)), None),
        (sl.HuberLoss(), None),
        (Subclass(), None),
        (None, None),
    ],
)
def test_only_a_plain_mean_has_a_closed_form(criterion, form):
    assert closed_form_of(criterion) == form


def test_networks_trained_together_ignore_the_class_to_be_ignored():
    generator = np.random.default_rng(0)
    y = np.arange(90) % 3
    X = (generator.normal(size=(90, 4)) + 2.0 * y[:, None]).astype(np.float32)
    model = StableNetClassifier(
        criterion__ignore_index=1, lr=0.05, max_epochs=30, random_state=0
    )
    grid = {"lr": [0.05, 0.06]}
    batched = BatchedGridSearchCV(model, grid, cv=2, refit=False).fit(X, y)
    single = GridSearchCV(model, grid, cv=2, refit=False).fit(X, y)
    assert batched.cv_results_["stacked"].all()
    scores = batched.cv_results_["mean_test_score"]
    np.testing.assert_allclose(scores, single.cv_results_["mean_test_score"])
    assert (scores <= 2 / 3).all()  # the ignored class is never predicted
