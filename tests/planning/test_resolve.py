from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.errors import UserError
from nanochat.model import count_parameters
from nanochat.optim.scaling import optimal_tokens
from nanochat.planning.estimate import checkpoint_bytes, estimate, modelled_step_seconds, step_seconds, train_memory
from nanochat.planning.hardware import DATA_SHEETS, Hardware, choose_dtype, detect_hardware, named_hardware
from nanochat.planning.modes import MODES
from nanochat.planning.preparing import There, text_download_bytes
from nanochat.planning.resolve import Request, resolve
from nanochat.planning.rows import even_rows
from nanochat.report import cost_reasons

CPU = Hardware("a CPU", "cpu", 1, 2, 24 * 2**30, {"float32": 275e9, "bfloat16": 150e9})
A100_40GB = DATA_SHEETS["a100-40gb"]
FAST_CPU = replace(CPU, peak_flops={"float32": 208e9, "bfloat16": 903e9})


def resolved(hardware=CPU, compiler="g++", **asked):
    return resolve(Request(**asked), hardware, compiler=compiler)


def test_modes_have_the_guides_iterations():
    for mode, counts in {"demo": (500, 200, 100), "small": (2000, 500, 200), "medium": (5000, 1000, 500)}.items():
        for hardware in (CPU, A100_40GB):
            config = resolved(hardware, mode=mode).config
            assert tuple(config.stage(stage).num_iterations for stage in ("base", "mid", "sft")) == counts


# The guide's windows: hours of the whole run, hours of the base stage, bytes.
WINDOWS = {
    "demo": ((1, 2), (0.5, 1), (10, 15)),
    "small": ((3, 6), (2, 4), (15, 20)),
    "medium": ((9, 13), (6, 10), (20, 25)),
}


@pytest.mark.parametrize("mode", WINDOWS)
def test_modes_land_in_the_guides_windows_on_an_a100(mode):
    total_hours, base_hours, gigabytes = WINDOWS[mode]
    plan = estimate(resolved(A100_40GB, mode=mode).config, A100_40GB)
    assert total_hours[0] <= plan.seconds / 3600 <= total_hours[1]
    assert base_hours[0] <= plan.stages[0].train_s / 3600 <= base_hours[1]
    assert 0.99 * gigabytes[0] <= plan.memory_bytes / 1e9 <= gigabytes[1]  # rows come in powers of two


def test_the_demo_is_planned_within_six_minutes_on_two_cores():
    for hardware in (CPU, FAST_CPU):
        assert estimate(resolved(hardware).config, hardware).seconds < 360


def test_full_follows_tokens_per_parameter():
    config = resolved(A100_40GB, mode="full").config
    tokens = config.base.num_iterations * config.base.total_batch_size
    assert tokens == pytest.approx(optimal_tokens(config.model), rel=0.01)
    assert tokens == pytest.approx(10.5 * count_parameters(config.model).scaling, rel=0.01)


def test_an_explicit_number_of_iterations_overrides_every_rule():
    assert resolved(mode="full", stages=("base",), num_iterations=7).config.base.num_iterations == 7
    assert resolved(assignments=("mid.num_iterations=3",)).config.mid.num_iterations == 3
    with pytest.raises(UserError, match="number of one stage"):
        resolved(num_iterations=7)
    with pytest.raises(UserError, match="at least 1"):
        resolved(stages=("sft",), num_iterations=0)


def test_dtype_follows_the_measurement():
    assert choose_dtype(CPU)[0] == "float32"
    assert choose_dtype(FAST_CPU)[0] == "bfloat16"
    assert resolved(FAST_CPU).config.compute_dtype == "bfloat16"


def test_compile_rule():
    assert resolved().config.compile
    assert not resolved(compiler=None).config.compile
    assert not resolved(stages=("base",), num_iterations=20).config.compile
    assert resolved(stages=("base",), num_iterations=20, compile="on").config.compile
    assert not resolved(compile="off").config.compile
    with pytest.raises(UserError, match="C\\+\\+ compiler"):
        resolved(compiler=None, compile="on")


def test_compiling_has_to_save_more_time_than_it_takes():
    """Of the time of the stages, not of the number of their steps: a hundred long ones repay it, a mode whose hours
    are cut short does not."""
    few = {"stages": ("base",), "num_iterations": 100, "total_batch_size": 4096}
    assert not resolved(depth=1, **few).config.compile
    assert resolved(depth=8, **few).config.compile
    assert resolved(H200, **{**few, "total_batch_size": 524_288}).config.compile
    assert resolved(hours=1.0).config.compile
    cut = resolved(hours=0.02)
    assert not cut.config.compile
    assert any("torch.compile off: it takes about 26 s and saves about" in reason for reason in cut.reasons)
    assert sum(reason.startswith("total_batch_size") for reason in cut.reasons) == 1, "each choice is told once"
    assert not resolved(depth=3, **few).config.compile
    named = resolved(depth=3, **few, assignments=("base.num_iterations=100000",))
    assert named.config.compile, "what is set by name counts"
    for value in ("true", "false"):
        told = resolved(depth=3, **few, assignments=(f"compile={value}",))
        assert told.config.compile == (value == "true")
        assert not any("torch.compile" in reason for reason in told.reasons), "nobody has estimated that"


def test_every_automatic_choice_has_a_reason():
    reasons = " ".join(resolved().reasons)
    for choice in (
        "depth 3",
        "dtype float32",
        "torch.compile on",
        "attention",
        "total_batch_size",
        "device_batch_size",
    ):
        assert choice in reasons


def about(*choices, **asked):
    """The reasons that begin with one of these."""
    return [reason for reason in resolved(**asked).reasons if reason.startswith(choices)]


def test_the_batch_is_that_of_the_mode_however_many_iterations_are_asked_for():
    usual, longer = (
        resolved(stages=("base",), num_iterations=count, compile="on") for count in (None, 20_000)
    )
    assert longer.config.base.total_batch_size == usual.config.base.total_batch_size > 512
    assert any("the largest with which the mode's 800 steps" in reason for reason in longer.reasons)
    slow = replace(CPU, peak_flops={"float32": 1e9, "bfloat16": 1e9})
    assert "the smallest, with which the mode's 800 steps take more" in " ".join(resolved(slow).reasons)
    assert not about("base: 1", "base: 2", mode="full", num_iterations=7, stages=("base",))


def test_what_is_set_by_name_needs_no_reason():
    asked = {"stages": ("tokenizer", "base"), "assignments": (
        "compute_dtype=float32", "base.total_batch_size=8192", "base.device_batch_size=8", "base.lr_multiplier=2",
        "model.depth=2")}  # fmt: skip
    choices = ("compute dtype", "total_batch_size", "device_batch_size", "lr_multiplier", "depth")
    assert len(about(*choices, stages=("tokenizer", "base"))) == 5
    assert about(*choices, **asked) == []
    assert len(about("total_batch_size", assignments=("base.total_batch_size=8192",))) == 1, "mid and SFT have it"


def test_rows_are_chosen_for_what_is_set_by_name():
    assert rows_and_reason(assignments=("compute_dtype=float32",))[0] == 16 < rows_and_reason()[0]
    for rows in (2, 24):
        config = resolved(stages=("base",), assignments=(f"base.total_batch_size={rows * 256}",)).config
        assert config.base.device_batch_size == rows
    with pytest.raises(UserError, match="compute_dtype must be one of"):
        resolved(assignments=("compute_dtype=float16",))


def test_impossible_requests():
    with pytest.raises(UserError, match="no mode 'huge'"):
        resolved(mode="huge")
    with pytest.raises(UserError, match=r"--depth must.*--max-seq-len must"):
        resolved(depth=0, max_seq_len=4)
    with pytest.raises(UserError, match=r"needs about .* GiB"):
        resolved(depth=60, max_seq_len=4096, total_batch_size=4096)
    with pytest.raises(UserError, match="nearest that does"):
        resolved(total_batch_size=1000)


def test_depth_is_the_one_dial():
    small, large = (resolved(A100_40GB, mode="small", depth=depth).config for depth in (8, 20))
    assert (small.model.width, small.model.num_heads) == (512, 4)
    assert (large.model.width, large.model.num_heads) == (1280, 10)
    assert large.base.device_batch_size < small.base.device_batch_size


def test_batches_always_divide_among_workers():
    for workers in (1, 2, 4, 8):
        for mode in MODES:
            config = resolved(A100_40GB, mode=mode, num_workers=workers).config
            assert (
                config.base.total_batch_size % (config.base.device_batch_size * config.model.max_seq_len * workers) == 0
            )


def rows_and_reason(hardware=DATA_SHEETS["h100"], **asked):
    """device_batch_size, and why."""
    told = resolved(hardware, **asked)
    (reason,) = (reason for reason in told.reasons if reason.startswith("device_batch_size"))
    return told.config.base.device_batch_size, reason.partition(": ")[2]


@pytest.mark.parametrize(("workers", "rows", "why"), [
    (3, 29, "86 rows in 3 nearly equal pieces, as up to 39 keep"), (5, 26, "52 rows in 2 nearly equal pieces"),
    (7, 37, "all rows of a step on a worker"), (8, 32, "all rows of a step on a worker"),
    (1, 32, "256 rows in 8 equal pieces, as up to 39 keep training within 45 GiB"),
])  # fmt: skip
def test_any_number_of_workers_fills_memory(workers, rows, why):
    chosen, reason = rows_and_reason(num_workers=workers)
    assert (chosen, reason.startswith(why)) == (rows, True), reason


def test_the_plan_tells_how_a_step_is_cut():
    for workers, layout in ((3, "in at most 29 rows x 2,048 x 3 pieces one after the other x 3 workers"),
                            (8, "= 32 rows x 2,048 x 8 workers")):  # fmt: skip
        config = resolved(DATA_SHEETS["h100"], num_workers=workers).config
        told = cost_reasons(config, estimate(config, DATA_SHEETS["h100"], workers))
        assert any(f"524,288 tokens {layout}" in reason for reason in told), told


def test_the_reason_for_the_rows_is_true():
    assert rows_and_reason(total_batch_size=251 * 2048)[0] == 36, "251 is a prime"
    assert rows_and_reason(total_batch_size=250 * 2048)[1].startswith("250 rows in 10 equal pieces")
    assert rows_and_reason(total_batch_size=39 * 10 * 2048) == (
        39, "the most rows that keep training within 45 GiB (estimated 43.8 GiB)")  # fmt: skip
    assert rows_and_reason(total_batch_size=4 * 2048)[1].startswith("all rows of a step, which keeps")
    rows, reason = rows_and_reason(A100_40GB, depth=26, max_seq_len=4096, total_batch_size=4 * 4096)
    assert (rows, reason.startswith("the least, though")) == (1, True)


@given(total=st.integers(1, 600), workers=st.integers(1, 9), most=st.integers(1, 80))
def test_pieces_are_of_one_shape_where_that_costs_little(total, workers, most):
    share = -(-total // workers)
    most = min(most, share)
    rows = even_rows(total, workers, most)
    assert most / 2 < rows <= most
    if total % workers == 0 and any(share % each == 0 for each in range(most // 2 + 1, most + 1)):
        assert share % rows == 0
    else:
        assert -(-share // rows) == -(-share // most), "as few pieces as can be"


def test_a_step_takes_as_long_as_the_worker_with_the_most_rows():
    three, eight = (resolved(DATA_SHEETS["h100"], num_workers=count, total_batch_size=8 * 2048).config
                    for count in (3, 8))  # fmt: skip
    step_s = [step_seconds(config, config.base, DATA_SHEETS["h100"], count)
              for config, count in ((three, 3), (eight, 8))]  # fmt: skip
    alone = modelled_step_seconds(eight, replace(eight.base, total_batch_size=0), DATA_SHEETS["h100"])
    assert (step_s[0] - alone) / (step_s[1] - alone) == pytest.approx(3), "3, 3 and 2 rows"


def test_memory_grows_with_what_it_is_made_of():
    config = resolved(A100_40GB, mode="small").config
    in_full = replace(config, compute_dtype="float32")
    four, eight = (train_memory(config, rows, A100_40GB) for rows in (4, 8))
    assert eight.activations == 2 * four.activations
    assert eight.logits == four.logits  # a chunk at a time
    assert eight.total - four.total == four.activations
    assert train_memory(in_full, 4, A100_40GB).activations == 2 * four.activations
    parameters = count_parameters(config.model).total
    assert checkpoint_bytes(config.model) == 4 * parameters + four.optimizer


H200 = Hardware("NVIDIA H200", "cuda", 1, 16, 150_109_880_320, {"float32": 50.6e12, "bfloat16": 725e12})
# Depth, rows of 2,048, gigabytes that the allocator held at most: LOG.md, 2026-11-27.
HELD_ON_H200 = [(12, 16, 17.46), (12, 32, 29.48), (12, 64, 53.50), (14, 32, 39.80), (14, 64, 72.43), (20, 8, 31.30),
                (20, 16, 47.88), (20, 32, 81.02), (20, 64, 147.30)]  # fmt: skip
# Of real training by the pipeline: depth, rows, tokens of a step, the matmul peak then, seconds of a step.
TRAINED_ON_H200 = [(12, 32, 65_536, 758e12, 0.128), (14, 64, 131_072, 754e12, 0.361), (14, 64, 524_288, 714e12, 1.393)]


@pytest.mark.parametrize(("depth", "rows", "gigabytes"), HELD_ON_H200)
def test_what_a_gpu_held_is_what_is_modelled(depth, rows, gigabytes):
    config = resolved(H200, depth=depth, device_batch_size=rows, total_batch_size=524_288, compile="on").config
    assert train_memory(config, rows, H200).total / 1e9 == pytest.approx(gigabytes, rel=0.005)


@pytest.mark.parametrize(("depth", "rows", "tokens", "peak", "step_s"), TRAINED_ON_H200)
def test_what_a_gpu_took_is_what_is_modelled(depth, rows, tokens, peak, step_s):
    hardware = replace(H200, peak_flops={"float32": 50.6e12, "bfloat16": peak})
    config = resolved(hardware, depth=depth, device_batch_size=rows, total_batch_size=tokens, compile="on").config
    assert step_seconds(config, config.base, hardware) == pytest.approx(step_s, rel=0.1)
    unseen = DATA_SHEETS["h200"]  # planned for without it
    assert step_seconds(config, config.base, unseen) == pytest.approx(step_s, rel=0.1)


@pytest.mark.parametrize("name", DATA_SHEETS)
def test_every_gpu_can_be_planned_for(name):
    one, eight = (named_hardware(name, count) for count in (1, 8))
    assert one.memory_bytes < 150e9
    assert not one.measured
    for mode in MODES:
        alone = estimate(resolved(one, mode=mode).config, one)
        together = estimate(resolved(eight, mode=mode, num_workers=8).config, eight, 8)
        assert alone.memory_bytes < one.memory_bytes
        assert together.stages[0].train_s < alone.stages[0].train_s / 6


def test_hardware_by_name():
    assert named_hardware("cpu").device_type == "cpu"
    with pytest.raises(UserError, match="no hardware 'tpu'"):
        named_hardware("tpu")


def test_this_machine_can_be_detected():
    hardware = detect_hardware()
    assert hardware.cpu_count >= 1
    assert all(flops > 1e8 for flops in hardware.peak_flops.values())
    assert hardware.name in hardware.describe()


def test_differences_between_requests_name_the_flags():
    first = Request(depth=4, num_workers=1)
    assert first.differences(Request(depth=4, num_workers=2)) == []
    assert first.differences(Request(depth=6, mode="small")) == ["--mode 'demo' -> 'small'", "--depth 4 -> 6"]
    named = first.differences(Request(depth=4, start_from="a", stages=("base",), assignments=("seed=1",)))
    assert [each.partition(" ")[0] for each in named] == ["--stage", "--from", "--set"]


def test_of_little_text_no_more_is_prepared_than_there_is(tmp_path):
    (tmp_path / "text.txt").write_text("a" * 100_000)
    config = resolved(A100_40GB, mode="medium", data=str(tmp_path), stages=("tokenizer", "base")).config
    little = estimate(config, A100_40GB)
    assert little.prepare_disk_bytes < 1e6
    assert little.prepare_s < estimate(config, A100_40GB, 1, There(tokens=True)).prepare_s + 0.1
    assert estimate(replace(config, data="/nowhere"), A100_40GB).prepare_disk_bytes > 1e9


def test_token_shards_that_are_there_take_no_disk(tmp_path):
    (tmp_path / "text.txt").write_text("a" * 100_000)
    own = resolved(data=str(tmp_path), stages=("tokenizer", "base")).config
    web = resolved(A100_40GB, data="fineweb-edu", stages=("tokenizer", "base")).config
    fetched = text_download_bytes(web)
    for config, there, share in ((own, There(), 1), (own, There(tokens=True), 0), (web, There(text_bytes=fetched), 1),
                                 (web, There(tokens=True, text_bytes=fetched // 4), 0.75)):  # fmt: skip
        everything = estimate(config, A100_40GB).prepare_disk_bytes
        assert estimate(config, A100_40GB, 1, there).prepare_disk_bytes == pytest.approx(share * everything, rel=1e-3)


def test_what_this_machine_cannot_do_is_refused_before_anything_is_prepared():
    with pytest.raises(UserError, match="attention flash4 needs a GPU"):
        resolved(CPU, assignments=("attention=flash4",))
    with pytest.raises(UserError, match="fp8=true needs a GPU"):
        resolved(CPU, assignments=("fp8=true", "compute_dtype=bfloat16"))
    assert resolved(A100_40GB, assignments=("attention=flash4",)).config.attention == "flash4"  # a plan for elsewhere


def test_a_large_gpu_takes_more_rows():
    assert [resolved(DATA_SHEETS[name]).config.base.device_batch_size for name in ("a100-40gb", "h100", "h200")] == [
        4, 32, 64]  # fmt: skip
