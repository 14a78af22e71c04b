"""Mean-field stages, their residual functions, quadrature rules and integrators."""

from mf_zoo.layers.basic_block import BasicBlock, PreActBasicBlock
from mf_zoo.layers.batch_normalization import BatchNormalization
from mf_zoo.layers.bottleneck_block import (
    BottleneckBlock,
    PreActBottleneckBlock,
    ResNeXtBlock,
)
from mf_zoo.layers.conv2d import Conv2D
from mf_zoo.layers.grouped_conv2d import GroupedConv2D
from mf_zoo.layers.integrators import (
    EulerIntegrator,
    HeunIntegrator,
    Integrator,
    MidpointIntegrator,
    register_integrator,
)
from mf_zoo.layers.mean_field_stage import MeanFieldStage, stages
from mf_zoo.layers.particles import Block, ParticleInfo, Reflect, reflect
from mf_zoo.layers.quadrature import (
    BackwardRule,
    MidpointRule,
    QuadratureRule,
    UniformRule,
    UniformStraightThroughRule,
    register_rule,
    rules,
)
from mf_zoo.layers.stage_states import StageStates
from mf_zoo.layers.synchronize import synchronize_statistics

__all__ = [
    "BackwardRule",
    "BasicBlock",
    "BatchNormalization",
    "Block",
    "BottleneckBlock",
    "Conv2D",
    "EulerIntegrator",
    "GroupedConv2D",
    "HeunIntegrator",
    "Integrator",
    "MeanFieldStage",
    "MidpointIntegrator",
    "MidpointRule",
    "ParticleInfo",
    "PreActBasicBlock",
    "PreActBottleneckBlock",
    "QuadratureRule",
    "Reflect",
    "ResNeXtBlock",
    "StageStates",
    "UniformRule",
    "UniformStraightThroughRule",
    "reflect",
    "register_integrator",
    "register_rule",
    "rules",
    "stages",
    "synchronize_statistics",
]
