"""How many rows a forward pass takes: as many as memory holds, in pieces as even as they get."""

from nanochat.config import RunConfig
from nanochat.planning.estimate import train_memory
from nanochat.planning.hardware import GIB, Hardware
from nanochat.planning.memory import MemoryRecord
from nanochat.planning.modes import Size

USUAL_GPU_BYTES = 40 * 10**9  # what the modes' bytes are of
# From these on any mode may take such a share: more rows train faster, 1.5 % from 32 to 64 (LOG.md, 2026-11-27).
LARGE_GPU_BYTES, SHARE_OF_LARGE_GPU = 45 * 10**9, 0.6


def choose_rows(
    config: RunConfig, batch: int, size: Size, hardware: Hardware, num_workers: int, memory: MemoryRecord | None
) -> tuple[int, str]:
    """The device batch size of steps of `batch` tokens, and why.

    Args:
        memory: what earlier runs found to fit.
    """
    limit, total_rows = _memory_limit(size, hardware), max(batch // config.model.max_seq_len, 1)
    share = -(-total_rows // num_workers)
    remembered = memory.limit(config.model, config.compute_dtype) if memory else None
    most = min(share, remembered or share)
    while most > 1 and train_memory(config, most, hardware, num_workers).total > limit:
        most -= 1
    rows = even_rows(total_rows, num_workers, most)
    needed = train_memory(config, rows, hardware, num_workers).total
    within, pieces = f"within {limit / GIB:.0f} GiB", -(-share // rows)
    if needed > limit:
        why = f"the least, though it does not keep training {within}"
    elif rows == share:
        why = f"all rows of a step{' on a worker' * (num_workers > 1)}, which keeps training {within}"
    elif rows < most:
        cut = "equal" if total_rows == rows * pieces * num_workers else "nearly equal"
        why = f"{share} rows in {pieces} {cut} pieces, as up to {most} keep training {within}"
    else:
        why = f"{'rows' if most == remembered else 'the most rows'} that keep training {within}"
    if most == remembered:
        above = "it" if rows == most else most
        why += f", and memory ran out above {above} in an earlier run; --device-batch-size tries more"
    return rows, f"{why} (estimated {needed / GIB:.1f} GiB)"


def _memory_limit(size: Size, hardware: Hardware) -> int:
    """Bytes of a device that training may take."""
    limit = size.memory_bytes
    if hardware.device_type == "cuda" and hardware.memory_bytes >= LARGE_GPU_BYTES:
        share = max(size.memory_bytes / USUAL_GPU_BYTES, SHARE_OF_LARGE_GPU)
        limit = int(share * hardware.memory_bytes)
    return min(limit, int(0.9 * hardware.memory_bytes))


def even_rows(total_rows: int, num_workers: int, most: int) -> int:
    """Rows of a forward pass, at most so many, that cut a worker's share of a step into pieces of one shape, as each
    shape is compiled for. Where they would be at most half as many: into the fewest pieces, the last smaller."""
    share = -(-total_rows // num_workers)
    if total_rows % num_workers == 0:
        equal = max(rows for rows in range(1, most + 1) if share % rows == 0)
        if 2 * equal > most:
            return equal
    return -(-share // -(-share // most))
