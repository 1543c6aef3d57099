"""Public data sets become manifests: one reader per family, one table of the files that each data set has.

`prepare.DATA_SETS` is that table, `prepare.prepare` writes a manifest; docs/data.md says how to obtain each data set.
"""
