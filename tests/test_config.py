import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.config import RunConfig, StageConfig, TokenizerConfig, check, from_dict, override, to_dict
from nanochat.errors import UserError
from nanochat.model import ModelConfig
from nanochat.optim.schedule import Schedule


def make_config(**changes: object) -> RunConfig:
    stage = StageConfig(10, 1024, 2, Schedule())
    config = RunConfig(
        "demo",
        "tinyworld",
        0,
        ("tokenizer", "base"),
        "",
        ModelConfig.from_depth(2, 512, 64),
        TokenizerConfig(512),
        stage,
        stage,
        stage,
        "float32",
        False,
        "sdpa",
    )
    return dataclasses.replace(config, **changes)


@given(
    depth=st.integers(1, 30),
    iterations=st.integers(1, 10**6),
    warmdown=st.floats(0, 1),
    classic=st.booleans(),
    stages=st.lists(st.sampled_from(["tokenizer", "base", "mid", "sft"]), unique=True),
)
def test_json_round_trip_is_exact(depth, iterations, warmdown, classic, stages):
    config = make_config(
        model=ModelConfig.from_depth(depth, 512, 64, classic=classic),
        stages=tuple(stages),
        mid=StageConfig(iterations, 1024, 2, Schedule(warmdown=warmdown)),
    )
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_unknown_field_in_json_is_refused():
    data = to_dict(make_config())
    data["model"]["flavour"] = "mint"
    with pytest.raises(TypeError, match="flavour"):
        from_dict(RunConfig, data)


@given(value=st.integers(1, 10**9))
def test_override_sets_exactly_the_named_field(value):
    config = make_config()
    changed = override(config, [f"mid.num_iterations={value}"])
    assert changed.mid.num_iterations == value
    assert dataclasses.replace(changed, mid=config.mid) == config


def test_override_takes_every_type():
    changed = override(
        make_config(),
        [
            "compile=true",
            "sft.schedule.warmdown=0.25",
            "model.window_pattern=SSSL",
            "base.total_batch_size=524_288",
            "stages=base,mid",
        ],
    )
    assert changed.compile is True
    assert changed.sft.schedule.warmdown == 0.25
    assert changed.model.window_pattern == "SSSL"
    assert changed.base.total_batch_size == 524_288
    assert changed.stages == ("base", "mid")


def test_all_wrong_overrides_are_told_together():
    wrong = ["base.num_iteration=5", "nonsense", "compile=perhaps", "base=3", "seed.x=1", "mid.num_iterations=ten"]
    with pytest.raises(UserError) as caught:
        override(make_config(), wrong)
    for part in (
        "did you mean 'num_iterations'",
        "key=value",
        "neither true nor false",
        "name one of its fields",
        "has no parts",
        "not a whole number",
    ):
        assert part in caught.value.message


def test_impossible_architecture_is_told_with_its_key():
    with pytest.raises(UserError, match=r"--set model.window_pattern.*S and L"):
        override(make_config(), ["model.window_pattern=XY"])


def test_check_lists_every_problem():
    config = make_config(
        tokenizer=TokenizerConfig(100),
        compute_dtype="int4",
        keep_checkpoints=0,
        base=StageConfig(0, 1024, 2, Schedule(warmup=0.8, warmdown=0.8), lr_multiplier=-1, packing="loose"),
    )
    with pytest.raises(UserError) as caught:
        check(config)
    named = ("at least 300", "int4", "keep_checkpoints", "base.num_iterations", "overlap", "lr_multiplier", "loose")
    for part in named:
        assert part in caught.value.message


def test_batch_that_does_not_divide_names_the_nearest_that_does():
    with pytest.raises(UserError, match="the nearest that does is --total-batch-size 1024"):
        check(make_config(base=StageConfig(10, 1000, 2, Schedule())))  # rows of 64 tokens
    check(make_config(base=StageConfig(10, 1024, 2, Schedule())))
    check(make_config(base=StageConfig(10, 1024, 3, Schedule())))  # the last piece is smaller
    with pytest.raises(UserError, match="use at most --device-batch-size 16"):
        check(make_config(base=StageConfig(10, 1024, 17, Schedule())))


def test_only_the_stages_of_the_run_are_checked():
    broken = StageConfig(0, 1024, 2, Schedule())
    check(make_config(sft=broken))
    with pytest.raises(UserError, match=r"sft\.num_iterations"):
        check(make_config(sft=broken, stages=("sft",)))


def test_workers_share_the_batch():
    config = make_config(base=StageConfig(10, 1024, 8, Schedule()))  # 16 rows of 64 tokens
    for num_workers in (2, 3, 16):  # unequal shares are fine
        check(config, num_workers)
    with pytest.raises(UserError, match="use at most --num-workers 16"):
        check(config, num_workers=17)


def test_a_value_of_another_type_is_refused():
    data = to_dict(make_config())
    for key, value in (("seed", "0"), ("seed", True), ("compile", 1), ("data", None)):
        with pytest.raises(TypeError, match="not of type"):
            from_dict(RunConfig, data | {key: value})
