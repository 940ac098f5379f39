import pytest
from sklearn.datasets import load_breast_cancer

from sknan import SafeScaler


@pytest.fixture(scope="session")
def cancer():
    X, y = load_breast_cancer(return_X_y=True)
    return SafeScaler().fit_transform(X), y
