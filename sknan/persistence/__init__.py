"""Fitted models as torch modules and as files."""

from sknan.persistence._to_torch import ExportedModel, to_torch

__all__ = ["ExportedModel", "to_torch"]
