"""
What predictions depend on
==========================

The price of a flat depends on its size and on its city, and not on the floor. Some
sizes are missing. ``attributions`` divides each prediction of the fitted pipeline among
the columns of the table, and the sums agree with the predictions.
"""

# %%
# Flats, with missing sizes
# -------------------------

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd

from sknan import StableNetRegressor, tabular_pipeline
from sknan.inspection import AttributionDisplay, attributions

mpl.use("Agg")
import matplotlib.pyplot as plt

OUTPUTS = Path("outputs")
OUTPUTS.mkdir(exist_ok=True)

rng = np.random.default_rng(0)
n_rows = 1500
flats = pd.DataFrame(
    {
        "size": rng.uniform(20, 150, n_rows),
        "city": rng.choice(["Lima", "Oslo", "Rome"], n_rows),
        "floor": rng.integers(0, 8, n_rows).astype(float),
    }
)
of_city = flats["city"].map({"Lima": 0.0, "Oslo": 150.0, "Rome": 80.0})
price = 3.0 * flats["size"] + of_city + rng.normal(0, 20, n_rows)
flats.loc[rng.random(n_rows) < 0.1, "size"] = np.nan

model = tabular_pipeline(StableNetRegressor(random_state=0)).fit(flats, price)

# %%
# Contributions of the columns
# ----------------------------
# The one-hot codes count for the city, and the indicator of missing values for the
# size.

found = attributions(model, flats, random_state=0)
print(found.importances.round(1).to_string())

known = flats["size"].notna()
by_city = found.to_frame()["city"].groupby(flats["city"]).mean()
slope = np.polyfit(flats["size"][known], found.to_frame()["size"][known], 1)[0]
sums = found.values.sum(axis=1) + found.base_values
print(f"\nPrice per unit of size: {slope:.2f}, of 3.00 in truth")
print(f"Oslo above Lima: {by_city['Oslo'] - by_city['Lima']:.0f}, of 150 in truth")
print(f"Largest error of a sum: {np.abs(sums - model.predict(flats)).max():.1g}")

# %%
# All rows, and the first one
# ---------------------------

figure, (upper, lower) = plt.subplots(2, 1, figsize=(7, 5), layout="constrained")
display = AttributionDisplay(found)
display.plot(upper, kind="points")
display.plot(lower, kind="row", row=0)
figure.savefig(OUTPUTS / "11_what_predictions_depend_on.png", dpi=120)
