"""What is believed of a kind of device and data before the first search there."""

from dataclasses import replace

import numpy as np

from nanochat.config import TINYWORLD
from nanochat.search.law import PUBLISHED, Prior

# Trainings of depth 1 to 4 on two CPU cores, vocabulary 1,024, rows of 256: LOG.md, 2026-11-28. The law meets them
# within 0.02. Parameters, tokens, batch, lr_multiplier, val_bpb.
TINYWORLD_RUNS = (
    (114688, 1024000, 1024, 8, 0.6632),
    (524288, 512000, 512, 8, 0.6147),
    (524288, 512000, 1024, 12, 0.6198),
    (524288, 1024000, 2048, 5, 0.5025),
    (524288, 1024000, 2048, 5, 0.5079),
    (524288, 1024000, 2048, 8, 0.4787),
    (524288, 1024000, 2048, 20, 0.4532),
    (524288, 1228800, 4096, 8, 0.4616),
    (524288, 2048000, 2048, 8, 0.3672),
    (524288, 2048000, 2048, 20, 0.3752),
    (524288, 2048000, 4096, 5, 0.3914),
    (524288, 2048000, 4096, 14, 0.3728),
    (524288, 5087232, 2048, 14, 0.2910),
    (1523712, 512000, 2048, 8, 0.5825),
    (1523712, 1024000, 1024, 8, 0.3807),
    (1523712, 1024000, 2048, 8, 0.3954),
    (1523712, 1024000, 2048, 14, 0.3933),
    (1523712, 1792000, 3584, 8, 0.3124),
    (3407872, 256000, 1024, 8, 0.7661),
)
SMALL = Prior(
    mean=(0.2, np.log(0.3), np.log(3.0), 0.35, 0.5, 0.0, 0.42, np.log2(5), np.log(0.003), np.log(0.003), -4.5),
    sd=(0.15, 1.0, 1.0, 0.15, 0.2, 1.5, 0.2, 1.0, 1.0, 1.0, 1.0),
    reference_parameters=1e6,
    reference_tokens=1e6,
    reference_batch=1024,
    noise=0.006,
    model_error=0.010,
    source=f"{len(TINYWORLD_RUNS)} trainings on TinyWorld on two CPU cores",
    runs=TINYWORLD_RUNS,
)
# On a GPU the same text is gone through far more often by far larger models. What earlier trainings say of batches (lB)
# is kept, all else is as uncertain as before them: depth 12 on an H200 ended at 0.445 after 6.6M tokens and at 0.635
# after 30M (LOG.md, 2026-11-27), from which its ln_P is.
SMALL_ON_GPU = replace(
    SMALL,
    mean=(*SMALL.mean[:5], 2.9, *SMALL.mean[6:-1], -3.5),
    source="37 earlier trainings on TinyWorld on two CPU cores, held for less certain on a GPU",
    runs=(),
)
# Text of people is harder than TinyWorld, and every text differently: the middle is WikiText-2's, from twelve trainings
# of six minutes (LOG.md, 2026-11-23) and 45 on parts of it, of one to sixteen epochs (`bench.py epochs`, LOG.md,
# 2026-11-28), held for less certain than there. A few megabytes leave a few documents to validate on, so that equal
# trainings end 0.01 apart. All had the weight decay that only text gone through again has now: gone through once or
# twice, it ends 0.03 to 0.09 lower.
SMALL_TEXT = Prior(
    mean=(1.0, -1.9, 6.0, 0.24, 0.2, 1.2, -0.15, 2.25, -7.0, -5.6, -4.0),
    sd=(0.4, 0.7, 1.0, 0.1, 0.08, 0.9, 0.3, 0.6, 0.7, 0.6, 0.7),
    reference_parameters=1e6,
    reference_tokens=1e6,
    reference_batch=1024,
    noise=0.010,
    model_error=0.012,
    source="57 trainings on WikiText-2 on two CPU cores, held for less certain on other text",
)


# So little text is learned by heart as far smaller models learn it, however large the machine; batch and learning rate
# are those of `PUBLISHED` in these references, as far as they say the same of a GPU.
SMALL_TEXT_ON_GPU = replace(
    SMALL_TEXT,
    mean=(*SMALL_TEXT.mean[:5], 4.6, 0.42, 1.0, *SMALL_TEXT.mean[8:]),
    sd=(*(1.5 * sd for sd in SMALL_TEXT.sd[:5]), *PUBLISHED.sd[5:10], 1.5 * SMALL_TEXT.sd[10]),
    source="57 trainings on WikiText-2 on two CPU cores, held for less certain on a GPU",
)
SMALL_TEXT_TOKENS = 10_000_000.0


def prior_for(device_type: str, data: str, unique_tokens: float = np.inf) -> Prior:
    """The best known."""
    if data == TINYWORLD:
        return SMALL if device_type == "cpu" else SMALL_ON_GPU
    if device_type == "cpu":
        return SMALL_TEXT
    return SMALL_TEXT_ON_GPU if unique_tokens < SMALL_TEXT_TOKENS else PUBLISHED
