"""Ray Train's trainer with fewer processes, for a cluster of this process's own.

Ray Train starts five actors beside the worker. One lets workers wait for each other. Three serve its datasets, of which
there are none, clean up behind a controller that dies, with which this cluster ends anyway, and ask an autoscaler for
machines. The last is the controller, which can as well run here. Each takes a second or two of the start, and wakes a
hundred times a second: on two cores the training feels that (LOG.md, 2026-11-27). Nothing of it can be set, so this
reaches into Ray, of which pyproject.toml therefore allows one minor version.
"""

import asyncio
from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup


class LeanTrainer(TorchTrainer):
    """For a cluster that nobody shares, grows or outlives."""

    def _create_default_callbacks(self) -> list[Any]:
        unused = DatasetsCallback | PlacementGroupCleanerCallback
        return [each for each in super()._create_default_callbacks() if not isinstance(each, unused)]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        if type(settings["scaling_policy"]) is not FixedScalingPolicy:
            return super()._initialize_and_run_controller(**settings)
        controller = _Controller(**settings | {"scaling_policy": _AsItIs(self.scaling_config)})
        asyncio.run(controller.run())
        return controller.get_result()


class _AsItIs(FixedScalingPolicy):
    """So many workers on the machines there are."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Ask nobody for more."""

    def _maybe_send_resource_request(self) -> None:
        """Nor later."""


class _WorkerGroup(WorkerGroup):
    def _init_train_context_on_workers(
        self, workers: list[Any], sync_actor: Any, train_context_args: dict[str, list[Any]]
    ) -> None:
        """As Ray does, but that workers are told of no controller: an actor could be asked for reported checkpoints."""
        for_all = {
            "train_run_context": self._train_run_context,
            "synchronization_actor": sync_actor,
            "storage_context": self._storage_context,
            "worker_callbacks": self._worker_callbacks_to_propagate,
            "controller_actor": None,
        }
        for_each = [
            {"distributed_context": worker.distributed_context}
            | {name: values[number] for name, values in train_context_args.items()}
            for number, worker in enumerate(workers)
        ]
        ray.get([
            worker.actor.init_train_context.remote(**for_all, **own)
            for worker, own in zip(workers, for_each, strict=True)
        ])
        self._decorate_worker_log_file_paths(workers)


class _Controller(TrainController):
    worker_group_cls = _WorkerGroup
