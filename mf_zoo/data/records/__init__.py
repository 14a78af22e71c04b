"""The datasets of the package: each module here defines the record of one as `DATASET`."""
