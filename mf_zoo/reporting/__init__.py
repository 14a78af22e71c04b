"""Reporting: tables and pictures from the results of campaigns, and cards of weights."""

from mf_zoo import lazy

__all__, __getattr__, __dir__ = lazy.attach(
    __name__,
    {
        "Cell": "cell",
        "PUBLISHED": "published",
        "cells": "cell",
        "draw": "pictures",
        "markdown": "report",
        "model_card": "card",
        "read_results": "cell",
        "t_interval": "statistics",
    },
)
