"""Fine-tuning on conversations, from the weights of a run: how long, in which steps, how fast."""

SPACE = {
    "num_iterations": {"stage": "sft", "low": 25, "high": 1600, "scale": "log2", "step": 1},
    "total_batch_size": {"stage": "sft", "low": 512, "high": 524_288, "scale": "log2", "step": 1},
    "lr_multiplier": {"stage": "sft", "low": 0.0625, "high": 8.0, "scale": "log2", "step": 0.5},
}
