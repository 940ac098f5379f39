"""Fitted models as files that run no code, as torch modules and as ONNX files."""

from sknan._utils.trusted_types import TRUSTED_TYPES
from sknan.persistence._files import load, save
from sknan.persistence._skl2onnx import register_on_import
from sknan.persistence._to_onnx import to_onnx
from sknan.persistence._to_torch import ExportedModel, to_torch

__all__ = ["TRUSTED_TYPES", "ExportedModel", "load", "save", "to_onnx", "to_torch"]

register_on_import()
