"""Data sets of the field become our manifests: one reader a family, one table that says what is expected where.

`prepare.DATA_SETS` is that table, `prepare.prepare` writes a manifest; docs/data.md says how each data set is obtained.
"""
