"""Detection of faults in a table and its target before training.

A new kind of finding needs two changes: its severity and remedy are one entry in
``_remedies.py``, and its detection is a few lines in the module for columns, text,
numbers, tables, targets or leakage, which add an observation of that kind. A detector
of a fault of the whole table is one function in ``_tables.py``, listed in
``DETECTORS``.
"""
