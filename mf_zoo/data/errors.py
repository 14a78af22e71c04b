"""Errors of data that are missing or damaged."""

from mf_zoo.errors import UserError


class DatasetUnavailableError(UserError, FileNotFoundError):
    """The dataset is neither prepared on this machine nor can it be downloaded."""


class DatasetCorruptError(UserError, ValueError):
    """The dataset's files are there, but they do not hold what they should."""
