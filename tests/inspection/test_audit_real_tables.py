"""Known faults of published tables."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from sknan import audit

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SUITE = DATA / "datasets.json"
TABLES = json.loads(SUITE.read_text())["datasets"] if SUITE.exists() else []

FOUND = {
    "titanic": {
        "missing": "'age' (20 %).",
        "heavy tail": "'fare' (512.3 is 21 IQRs beyond the quartiles).",
        "missing goes with the target": "'deck' (in 88 % of 0, 60 % of others).",
        "missing category": "3 columns: 'deck' (77 %), 'embarked' (2 of 891), "
        "'embark_town' (2 of 891).",
        "duplicated column": "2 columns: 'class' ('pclass' under other names), "
        "'embark_town' ('embarked' under other names).",
        "duplicated rows": "13 %; 43 rows have a duplicate with another target.",
    },
    "sick": {
        "empty": "'TBG' (no known value).",
        "imbalance": "'negative' in 94 %, 'sick' in 6.1 %.",
        "lone outlier": "'age' (455 is 13 IQRs beyond the quartiles, the next value is "
        "94).",
        "constant": "'TBG measured' (always 'f').",
    },
    "adult": {
        "sentinel": "'capital-gain' (99999 in 0.47 %).",
        "word for missing": "3 columns: 'occupation' ('?' in 5.9 %), 'workclass' ('?' "
        "in 5.8 %), 'native-country' ('?' in 1.6 %).",
        "duplicated column": "'education' ('education-num' under other names).",
    },
    "auto_imports": {
        "numbers as text": "5 columns: 'horsepower' (such as '68'), 'peak-rpm' (such "
        "as '5500'), 'bore' (such as '3.62'), 'stroke' (such as '3.40'), "
        "'normalized-losses' (such as '161').",
        "skew": "skewness 1.796.",
    },
    "air_quality": {"times as text": "'Time' (such as '18:00:00')."},
    "taxis": {
        "one value": "0 in 36 %.",
        "many levels": "2 columns: 'dropoff_zone' (193 categories), 'pickup_zone' "
        "(181 categories).",
    },
    "meta": {"heavy tail": "'Bin' (43 is 42 IQRs beyond the quartiles)."},
}


@pytest.mark.skipif(not TABLES, reason="../shared/data is not on this machine")
@pytest.mark.parametrize("name", [table["name"] for table in TABLES])
def test_the_known_faults_of_real_tables_are_found_and_few_others(name):
    table = next(table for table in TABLES if table["name"] == name)
    frame = pd.read_csv(DATA / table["file"])
    found = audit(frame, table["target"])
    evidence = {f.kind: f.evidence for f in found}
    assert FOUND.get(name, {}).items() <= evidence.items()
    assert len(found) <= 12
    # The numeric sentinels found are those in the description of the table.
    known = table["sentinels"]
    for column, values in found.sentinels.items():
        numbers = [value for value in values if not isinstance(value, str)]
        assert set(numbers) <= set(known.get(column, known.get("*", [])))
        assert set(values) - set(numbers) <= set(table["na_values"])
    for column in known:
        if column == "*":
            numeric = frame.drop(columns=table["target"]).select_dtypes("number")
            assert set(found.sentinels) == set(numeric)
        else:
            assert found.sentinels[column] == known[column]
