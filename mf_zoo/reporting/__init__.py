"""Reporting: tables and pictures of campaigns, pages about runs, and cards of weights."""

from mf_zoo import lazy

__all__, __getattr__, __dir__ = lazy.attach(
    __name__,
    {
        "Cell": "cell",
        "PUBLISHED": "published",
        "cells": "cell",
        "draw": "pictures",
        "evidence": "twins",
        "markdown": "report",
        "model_card": "card",
        "read_results": "cell",
        "run_report": "run_page",
        "t_interval": "statistics",
    },
)
