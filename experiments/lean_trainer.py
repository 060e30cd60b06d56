"""Ray Train's trainer without the actors that a cluster of this process's own has no use for.

Five actors would stand beside the worker. Three of them serve Ray's datasets, of which there are none, clean up behind
a controller that dies, with which this cluster ends anyway, and ask an autoscaler for machines. Each takes a second of
the start, and wakes a hundred times a second: on two cores the training feels that (LOG.md, 2026-11-27). Nothing of it
can be set, so this reaches into Ray, of which pyproject.toml therefore allows one minor version.
"""

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy


class LeanTrainer(TorchTrainer):
    """For a cluster that nobody shares, grows or outlives."""

    def _create_default_callbacks(self) -> list[Any]:
        unused = DatasetsCallback | PlacementGroupCleanerCallback
        return [each for each in super()._create_default_callbacks() if not isinstance(each, unused)]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        if type(settings["scaling_policy"]) is FixedScalingPolicy:
            settings["scaling_policy"] = _AsItIs(self.scaling_config)
        return super()._initialize_and_run_controller(**settings)


class _AsItIs(FixedScalingPolicy):
    """So many workers on the machines there are."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Ask nobody for more."""

    def _maybe_send_resource_request(self) -> None:
        """Nor later."""
