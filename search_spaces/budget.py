"""What the hours are spent on: the size of the model, the batch and the learning rate. The steps are as many as the
hours allow, at least 600 of them unless the text is too little for that; a knob `num_iterations` would bound them."""

SPACE = {
    "depth": {"stage": "base", "low": 1, "high": 32, "scale": "linear", "step": 1},
    "total_batch_size": {"stage": "base", "low": 512, "high": 2_097_152, "scale": "log2", "step": 1},
    "lr_multiplier": {"stage": "base", "low": 0.125, "high": 16.0, "scale": "log2", "step": 0.5},
}
