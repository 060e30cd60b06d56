"""Ray on this machine: started quietly, with its errors left audible."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

# Each silences one kind of message that tells a user of a one-machine run nothing; set before Ray is imported.
QUIET = {
    "RAY_AUTH_MODE": "disabled",  # bound to this machine
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray's 15 would let any other process stop the training
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon a dead worker is noticed
    "GOMP_SPINCOUNT": "10000",  # wait a little: see LOG.md, 2026-11-22
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic matrix products on CUDA
}


@contextmanager
def local_cluster(cpu_count: int, gpu_count: int) -> Iterator[None]:
    """A Ray cluster of this process's own, gone when the block is left."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    ray.init(
        address="local",
        num_cpus=cpu_count,
        num_gpus=gpu_count,
        include_dashboard=False,
        configure_logging=True,
        logging_level=logging.ERROR,
        logging_config=ray.LoggingConfig(log_level="ERROR"),
        log_to_driver=True,
    )
    try:
        yield
    finally:
        ray.shutdown()
