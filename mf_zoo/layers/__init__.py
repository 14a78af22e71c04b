"""Mean-field stages, the residual functions they carry and the quadrature rules they use."""

from mf_zoo.layers.basic_block import BasicBlock
from mf_zoo.layers.batch_normalization import BatchNormalization
from mf_zoo.layers.mean_field_stage import MeanFieldStage, stages
from mf_zoo.layers.particles import ParticleInfo, Reflect, reflect
from mf_zoo.layers.quadrature import (
    BackwardRule,
    MidpointRule,
    QuadratureRule,
    UniformRule,
)

__all__ = [
    "BackwardRule",
    "BasicBlock",
    "BatchNormalization",
    "MeanFieldStage",
    "MidpointRule",
    "ParticleInfo",
    "QuadratureRule",
    "Reflect",
    "UniformRule",
    "reflect",
    "stages",
]
