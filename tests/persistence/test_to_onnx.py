"""ONNX files in onnxruntime against the models that they are made from."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest
from persistence_helpers import (
    IN_SKORCH,
    LABELS,
    classifier,
    clean_table,
    model_of,
    table_of_texts,
    table_pipeline,
    text_pipeline,
    unusual_rows,
    unusual_table,
)
from torch import nn

from sknan import GuardedNetRegressor, TabularMLP
from sknan.persistence import to_onnx

onnx = pytest.importorskip("onnx", reason="needs the extra sknan[onnx]")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")


def session_of(model):
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def test_a_file_predicts_a_raw_table_as_its_model(tmp_path):
    pipeline, table = table_pipeline(), unusual_table()
    to_onnx(pipeline, tmp_path / "model.onnx")
    session = session_of(tmp_path / "model.onnx")
    types = {given.name: given.type for given in session.get_inputs()}
    numbers = ("age", "income", "linear", "probabilities")
    texts = ("city", "sex")
    assert types == {
        **dict.fromkeys(numbers, "tensor(double)"),
        **dict.fromkeys(texts, "tensor(string)"),
    }
    assert list(types) == pipeline[0].get_feature_names_out().tolist()
    feeds = {name: table[[name]].to_numpy(dtype=np.float64) for name in numbers}
    feeds |= {name: table[[name]].fillna("").to_numpy(dtype=object) for name in texts}
    (found,) = session.run(["probabilities_"], feeds)
    np.testing.assert_allclose(found, pipeline.predict_proba(table), atol=1e-6)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == ["u", "v", "w"]
    opsets = {known.domain: known.version for known in _read(tmp_path).opset_import}
    assert opsets == {"": 20, "ai.onnx.ml": 3}


def _read(folder):
    return onnx.load(folder / "model.onnx")


def test_texts_are_read_as_by_the_pipeline(tmp_path):
    pipeline = text_pipeline()
    to_onnx(pipeline, tmp_path / "model.onnx")
    session = session_of(tmp_path / "model.onnx")

    def found(texts):
        table = table_of_texts(texts)
        feeds = {name: table[[name]].to_numpy() for name in table}
        return session.run(["predictions"], feeds)[0], pipeline.predict(table)

    words = ["", "?", "N/A", "unknown", "Unknown", "nan", "NaN", "NULL", "new", "x"]
    same = {
        "letter": words,
        "version": ["2", "2.0", "3", "unknown", "4"],
        "flag": ["TRUE", "True", "true", "1", "0", "yes"],
        "country": ["NA", "na", "N/A", "DE"],
    }
    np.testing.assert_allclose(*found(same), rtol=1e-5)
    # The differences that the guide lists: these texts are unknown to the file.
    others = {"letter": [" x", "x ", "uNKNOWN"], "version": ["2.00"]}
    of_file, _ = found(others)
    of_unknown, _ = found({"letter": ["new"] * 3, "version": ["new"]})
    assert of_file.tolist() == of_unknown.tolist()
    (none,) = session.run(
        ["predictions"], {name: np.empty((0, 1), dtype=object) for name in same}
    )
    assert none.shape == (0,)


def test_numbers_without_names_are_one_input(tmp_path):
    model, rows = model_of("two targets, one constant"), unusual_rows(dtype="float32")
    to_onnx(model, tmp_path / "model.onnx", opset=18, dtype="float32")
    assert [known.version for known in _read(tmp_path).opset_import] == [18]
    (found,) = session_of(tmp_path / "model.onnx").run(["predictions"], {"X": rows})
    np.testing.assert_allclose(found, model.predict(rows), rtol=1e-5)


def test_skl2onnx_converts_a_pipeline():
    skl2onnx = pytest.importorskip("skl2onnx", reason="needs skl2onnx")
    model, rows = model_of("classes"), unusual_rows()
    converted = skl2onnx.to_onnx(model, rows[:1], options={"zipmap": False})
    session = session_of(converted.SerializeToString())
    labels, probabilities = session.run(["label", "probabilities"], {"X": rows})
    assert labels.tolist() == model.predict(rows).tolist()
    np.testing.assert_allclose(probabilities, model.predict_proba(rows), atol=1e-6)


def test_the_number_of_columns_must_be_known(tmp_path):
    X = clean_table().astype("float32")
    net = GuardedNetRegressor(TabularMLP, **IN_SKORCH, module__n_outputs=1)
    net.set_params(criterion=nn.MSELoss).fit(X, X[:, :1])
    with pytest.raises(ValueError, match=r"pipeline: make_pipeline\(NaNImputer\(\)"):
        to_onnx(net, tmp_path / "model.onnx")


def test_an_object_that_is_no_path_is_refused():
    with pytest.raises(ValueError, match="path") as refused:
        to_onnx(model_of("classes"), 1)
    assert str(refused.value) == (
        "The 'path' parameter of to_onnx must be a path, got 1."
    )


def test_another_dtype_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'float32', got \['float32'\]\.$"):
        to_onnx(model_of("classes"), tmp_path / "model.onnx", dtype=["float32"])
    with pytest.raises(ValueError, match="'float64' or 'float32', got 'float16'"):
        to_onnx(model_of("classes"), tmp_path / "model.onnx", dtype="float16")


@pytest.mark.parametrize("opset", [9, 17, 99, True, 20.0, "20"])
def test_another_opset_is_refused(tmp_path, opset, capfd):
    message = (
        f"opset must be an integer from 18 to {onnx.defs.onnx_opset_version()}, the "
        f"newest of onnx {onnx.__version__}, got {opset!r}."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        to_onnx(model_of("classes"), tmp_path / "model.onnx", opset=opset)
    assert not (tmp_path / "model.onnx").exists()
    assert capfd.readouterr().err == ""


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    net = classifier().fit(clean_table(), LABELS)
    with pytest.raises(ImportError, match=r"pip install 'sknan\[onnx\]'"):
        to_onnx(net, tmp_path / "model.onnx")
