"""
From a raw table to predictions in one call
===========================================

A table of used cars contains numbers and dates as text, ``-999`` and ``"?"`` for
unknown values, infinities, and later categories that are new. The audit lists the
problems, and ``tabular_pipeline`` handles them. After the usual preparation by hand,
the mean error of a network is a fifth larger.
"""

# %%
# A raw table
# -----------

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from sklearn.compose import (
    TransformedTargetRegressor,
    make_column_selector,
    make_column_transformer,
)
from sklearn.impute import SimpleImputer
from sklearn.metrics import mean_absolute_error
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sknan import audit, tabular_pipeline

mpl.use("Agg")
import matplotlib.pyplot as plt

OUTPUTS = Path("outputs")

rng = np.random.default_rng(0)
n_rows = 3000
age = rng.gamma(4.0, 2.0, n_rows)
km = 12_000 * age * rng.lognormal(0, 0.4, n_rows)
power = rng.lognormal(4.6, 0.4, n_rows)
fuel = rng.choice(["petrol", "diesel", "electric"], n_rows, p=[0.5, 0.35, 0.15])
make = rng.choice([f"make {i}" for i in range(30)], n_rows)
worth = dict(zip(np.unique(make), rng.normal(0, 0.3, 30), strict=True))
price = 9000 * np.exp(
    0.7 * np.log(power / 100)
    - 0.1 * age
    - km / 300_000
    + 0.3 * (fuel == "electric")
    + np.array([worth[name] for name in make])
    + rng.normal(0, 0.1, n_rows)
)

registered = pd.Timestamp("2026-06-01") - pd.to_timedelta(365 * age, unit="D")
cars = pd.DataFrame(
    {
        "registered": registered.strftime("%d.%m.%Y"),
        "km": km.round().astype(int).astype(str),
        "power": power.round(),
        "km per kW": km / power,
        "fuel": fuel,
        "make": make,
        "remark": None,
    }
)


def random_rows(share):
    return rng.random(n_rows) < share


cars.loc[random_rows(0.08), "km"] = "?"
cars.loc[random_rows(0.02), "km"] = "not legible"
cars.loc[random_rows(0.10), "power"] = -999
cars.loc[random_rows(0.01), "km per kW"] = np.inf
cars.loc[random_rows(0.05), "fuel"] = None
print(cars.head(8))

# %%
# Problems of the table
# ---------------------
# The audit changes nothing. Each finding states what the pipeline does about it, or
# what you can do.

print(audit(cars, price))

# %%
# One call
# --------
# For comparison, another network follows a preparation that is often written by hand:
# cells that are not numbers become missing, medians replace missing values, and columns
# are standardized.

train, test, y_train, y_test = train_test_split(cars, price, random_state=0)


def by_hand(table):
    numbers = table[["km", "power", "km per kW"]].apply(pd.to_numeric, errors="coerce")
    days = pd.to_datetime(table["registered"], dayfirst=True)
    numbers["registered"] = days.astype("int64")
    numbers = numbers.replace(np.inf, np.nan)
    return numbers.join(table[["fuel", "make"]].fillna("none"))


usual = make_pipeline(
    make_column_transformer(
        (
            make_pipeline(SimpleImputer(strategy="median"), StandardScaler()),
            make_column_selector(dtype_include="number"),
        ),
        (OneHotEncoder(handle_unknown="ignore"), ["fuel", "make"]),
    ),
    TransformedTargetRegressor(
        MLPRegressor(early_stopping=True, max_iter=500, random_state=0),
        transformer=StandardScaler(),
    ),
)
usual.fit(by_hand(train), y_train)

model = tabular_pipeline("regressor", random_state=0).fit(train, y_train)

predicted = {"by hand": usual.predict(by_hand(test)), "one call": model.predict(test)}
errors = {name: mean_absolute_error(y_test, p) for name, p in predicted.items()}
for name, error in errors.items():
    print(f"{name:9} mean absolute error {error:6.0f}")

# %%
# Learned properties of the columns
# ---------------------------------

cleaner = model["clean"]
print("read as:", cleaner.kinds_)
print("missing:", cleaner.sentinels_)
print("dropped:", cleaner.dropped_)
print("given to the network:", len(model[:-1].get_feature_names_out()), "columns")

# %%
# Later tables
# ------------
# This table has another order of columns, other types, new categories and words, and an
# empty column. The pipeline finds columns by name and converts them as in training.

later = test[test.columns[::-1]].head(4).copy()
later["km"] = [12000.5, None, np.inf, 40_000]
later["power"] = ["90", "N/A", "1e999", "unknown"]
later["fuel"] = ["hydrogen", None, "?", "diesel"]
later["registered"] = None
print(model.predict(later).round())

# %%
# Predicted and true prices
# -------------------------

figure, axes = plt.subplots(
    1, 2, figsize=(9, 4.4), layout="constrained", sharex=True, sharey=True
)
ends = [min(y_test), max(y_test)]
for axis, (name, prices) in zip(axes, predicted.items(), strict=True):
    axis.plot(ends, ends, color="0.6", linewidth=1)
    axis.loglog(y_test, np.maximum(prices, 100), ".", markersize=3, color="#0b5394")
    axis.set(title=f"{name}: mean error {errors[name]:.0f}", xlabel="true price")
axes[0].set_ylabel("predicted price")
OUTPUTS.mkdir(exist_ok=True)
figure.savefig(OUTPUTS / "03_messy_table_end_to_end.png", dpi=120)
