"""Optimizers that move particles: blocks and their times."""

from mf_zoo.optimizers.mean_field_optimizer import MeanFieldOptimizer
from mf_zoo.optimizers.mean_field_sgd import MeanFieldSGD

__all__ = ["MeanFieldOptimizer", "MeanFieldSGD"]
