"""The machinery of the notebooks: parameters, the driver, records, reading copies, references, generated tables.

May import everything; only the command line imports it.
Introduced in notebook 00; its records are shown in notebook 99.
"""
