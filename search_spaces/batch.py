"""The batch of a model whose depth is given: tokens of a step, and rows of a forward pass."""

SPACE = {
    "total_batch_size": {"stage": "base", "low": 512, "high": 2_097_152, "scale": "log2", "step": 1},
    "device_batch_size": {"stage": "base", "low": 1, "high": 64, "scale": "log2", "step": 1},
}
