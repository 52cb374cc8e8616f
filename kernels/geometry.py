"""The geometry of HMC-Net's stages on a ResNet-50, and the attention problems it gives."""

from collections.abc import Iterator

from hmc_fast.kernels.problem import AttentionProblem

STRIDES = {"c2": 4, "c3": 8, "c4": 16, "c5": 32}
CHANNELS = {"c2": 256, "c3": 512, "c4": 1024, "c5": 2048}
QK_HEAD_DIM = 64
HSA_STAGES = ("c3", "c4", "c5")
HSA_VALUE_HEAD_DIM = 256
MSCA_HEADS = 4
MSCA_TARGET, MSCA_SOURCES = "c5", ("c3", "c4")
IMAGE_SIZES = (224, 512, 1024)


def hsa_heads(channels: int) -> int:
    """Heads of the self-attention after a stage of ``channels``: of 256 each, at least one."""
    return max(1, channels // HSA_VALUE_HEAD_DIM)


def tokens(stage: str, height: int, width: int) -> int:
    """Positions in the feature map of ``stage`` for an image of ``height × width`` pixels."""
    return (height // STRIDES[stage]) * (width // STRIDES[stage])


def self_attention_problem(stage: str, size: int, batch: int) -> AttentionProblem:
    """Hierarchical self-attention after ``stage`` of an image of ``size``² pixels, in bf16."""
    count, heads = tokens(stage, size, size), hsa_heads(CHANNELS[stage])
    v_head_dims = (CHANNELS[stage] // heads,)
    return AttentionProblem(
        batch, count, heads, (count,), v_head_dims, QK_HEAD_DIM, name=f"hsa_{stage}@{size}"
    )


def cross_attention_problem(size: int, batch: int) -> AttentionProblem:
    """Multi-scale cross-attention of C5 to C3 and C4 of an image of ``size``² pixels, in bf16."""
    return AttentionProblem(
        batch,
        tokens(MSCA_TARGET, size, size),
        MSCA_HEADS,
        tuple(tokens(stage, size, size) for stage in MSCA_SOURCES),
        tuple(CHANNELS[stage] // MSCA_HEADS for stage in MSCA_SOURCES),
        QK_HEAD_DIM,
        name=f"msca_{MSCA_TARGET}@{size}",
    )


def model_problems(batch: int = 8) -> Iterator[AttentionProblem]:
    """Every attention call of ``hmc_net`` at every image size of :data:`IMAGE_SIZES`."""
    for size in IMAGE_SIZES:
        for stage in HSA_STAGES:
            yield self_attention_problem(stage, size, batch)
        yield cross_attention_problem(size, batch)
