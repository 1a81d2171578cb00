"""The configuration in the words of a job: what its order says of policy and limits."""

from __future__ import annotations

from edgeopt.config.schema import Config
from edgeopt.policy import Policy, WorkerLimits


def policy(config: Config) -> Policy:
    """What the operator accepts; a drop's job.yaml is laid over it in the worker, where YAML is parsed."""
    return Policy(target=config.target, goal=config.goal, search=config.search, techniques=config.techniques)


def worker_limits(config: Config, *, device_memory_bytes: int) -> WorkerLimits:
    """What a worker may use; a share of memory becomes bytes of this device."""
    limits = config.limits
    memory = limits.memory
    return WorkerLimits(
        sandbox=limits.sandbox,
        job_timeout_s=limits.job_timeout_s,
        memory_bytes=int(memory * device_memory_bytes) if isinstance(memory, float) else memory,
        threads=limits.threads,
        nice=limits.nice,
        model_bytes=limits.model_bytes,
        torchscript=config.intake.torchscript,
    )
