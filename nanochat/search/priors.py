"""What is believed of a kind of device and data before the first search there."""

from dataclasses import replace

import numpy as np

from nanochat.config import TINYWORLD
from nanochat.search.law import PUBLISHED, Prior

# Trainings of depth 1 to 4 on two CPU cores, vocabulary 1,024, rows of 256, of seconds to nine minutes: LOG.md,
# 2026-11-23, which says what was known of them when. The law meets them within 0.04. Parameters, tokens, batch,
# lr_multiplier, val_bpb.
TINYWORLD_RUNS = (
    (114688, 5146624, 1024, 5, 0.5263),
    (524288, 1219584, 512, 5, 0.5358),
    (524288, 930816, 1024, 1.25, 0.6592),
    (524288, 768000, 1024, 2.5, 0.6425),
    (524288, 1393664, 1024, 5, 0.4886),
    (524288, 3293184, 1024, 5, 0.3811),
    (524288, 806912, 1024, 10, 0.6535),
    (524288, 726016, 1024, 20, 0.7080),
    (524288, 1392640, 2048, 5, 0.4878),
    (524288, 4407296, 2048, 5, 0.3547),
    (524288, 1216512, 4096, 5, 0.5418),
    (1523712, 417280, 512, 5, 0.7346),
    (1523712, 416768, 1024, 5, 0.7354),
    (1523712, 1275904, 1024, 5, 0.4396),
    (1523712, 698368, 2048, 2.5, 0.5989),
    (1523712, 501760, 2048, 5, 0.6873),
    (1523712, 1845248, 2048, 5, 0.3746),
    (1523712, 413696, 4096, 5, 0.8184),
    (3407872, 192512, 1024, 5, 1.0152),
    (3407872, 625664, 1024, 5, 0.5563),
    (3407872, 772096, 2048, 5, 0.5232),
    (114688, 14711808, 1024, 5, 0.4542),
    (114688, 18509824, 2048, 5, 0.4341),
    (114688, 22093824, 4096, 5, 0.4214),
    (524288, 5703680, 1024, 5, 0.3183),
    (524288, 7243776, 2048, 5, 0.3114),
    (524288, 7397376, 4096, 5, 0.3055),
    (1523712, 2142208, 1024, 5, 0.3527),
    (1523712, 2908160, 2048, 5, 0.3325),
    (1523712, 3203072, 4096, 5, 0.3247),
    (1523712, 3272704, 4096, 5, 0.3256),
    (114688, 9535488, 32768, 11.31, 0.4806),
    (524288, 7704576, 4096, 4.99, 0.3068),
    (524288, 8208384, 4096, 4.99, 0.3072),
    (524288, 7913472, 4096, 4.99, 0.3067),
    (524288, 2498560, 4096, 2, 0.4032),
    (524288, 13402112, 16384, 5.02, 0.2928),
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
# On a GPU the same text is gone through far more often by far larger models. What those trainings say of the batch (lB)
# is kept, all else is as uncertain as before them: depth 12 on an H200 ended at 0.445 after 6.6M tokens and at 0.635
# after 30M (LOG.md, 2026-11-27), from which its ln_P is.
SMALL_ON_GPU = replace(
    SMALL,
    mean=(*SMALL.mean[:5], 2.9, *SMALL.mean[6:-1], -3.5),
    source=f"{len(TINYWORLD_RUNS)} trainings on TinyWorld on two CPU cores, held for less certain on a GPU",
    runs=(),
)
# Text of people is harder than TinyWorld, and every text differently: the middle is WikiText-2's, from twelve trainings
# of six minutes (LOG.md, 2026-11-23) and 45 on parts of it, of one to sixteen epochs (`bench.py epochs`, LOG.md,
# 2026-11-28), held for less certain than there. A few megabytes leave a few documents to validate on, so that equal
# trainings end 0.01 apart.
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
