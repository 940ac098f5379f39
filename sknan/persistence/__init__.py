"""Fitted models as torch modules and as ONNX files."""

from sknan.persistence._skl2onnx import register_on_import
from sknan.persistence._to_onnx import to_onnx
from sknan.persistence._to_torch import ExportedModel, to_torch

__all__ = ["ExportedModel", "to_onnx", "to_torch"]

register_on_import()
