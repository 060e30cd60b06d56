"""What the hours are spent on: the size of the model, the batch, the learning rate and the number of steps."""

SPACE = {
    "depth": {"stage": "base", "low": 1, "high": 32, "scale": "linear", "step": 1},
    "total_batch_size": {"stage": "base", "low": 512, "high": 2_097_152, "scale": "log2", "step": 1},
    "lr_multiplier": {"stage": "base", "low": 0.125, "high": 16.0, "scale": "log2", "step": 0.5},
    "num_iterations": {"stage": "base", "low": 600, "high": 1_000_000, "scale": "log2", "step": 1},
}
