"""What holds wherever checkpoints are kept: on a disk, and on a real S3 server. What only a disk does stands in
test_checkpoint.py, what a network does in test_remote_storage.py."""

import json
import pickle
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from nanochat.training.checkpoint import CheckpointError, CheckpointStore, DamagedCheckpoint, open_checkpoint
from tests.training.places import Place
from tests.training.test_checkpoint import FILES, assert_is, content, refuse_warnings


def test_what_is_saved_comes_back(place):
    store = CheckpointStore(place.location)
    assert (store.steps(), store.newest(refuse_warnings)) == ([], None)
    location = store.save(5, *content(5), score=1.25)
    assert place.files() == sorted(f"step_000005/{file}" for file in FILES)
    for found in (store.newest(refuse_warnings), store.open(5), open_checkpoint(location)):
        assert_is(found, 5)
        assert (found.location, found.score) == (str(location), 1.25)
        with pytest.raises(CheckpointError, match=r"step_000005.* holds no ema"):
            found.tensors("ema")
    assert CheckpointStore(place.location).steps() == [5]


def test_only_a_checkpoint_on_a_disk_has_a_path(place):
    store = CheckpointStore(place.location)
    found = open_checkpoint(store.save(5, *content(5)))
    if isinstance(place.filesystem, fs.LocalFileSystem):
        assert (found.path, store.directory) == (Path(place.path) / "step_000005", Path(place.path))
    else:
        with pytest.raises(CheckpointError, match=r"s3://.*not on a disk"):
            _ = found.path
        with pytest.raises(CheckpointError, match=r"s3://.*not on a disk"):
            _ = store.directory


def test_a_pickled_checkpoint_can_be_read_elsewhere(place):
    """As the other workers of a run get it: what the first one had copied to its own machine is not theirs."""
    store = CheckpointStore(place.location)
    store.save(5, *content(5))
    sent = pickle.dumps(store.newest(refuse_warnings))
    assert_is(pickle.loads(sent), 5)
    damage(place, "step_000005/model.safetensors", "flip")
    with pytest.raises(DamagedCheckpoint, match=r"checksum of model\.safetensors"):
        pickle.loads(sent).tensors("model")


def test_opened_without_checking_all(place):
    """Reads no tensors until they are asked for, and then none that are damaged."""
    store = CheckpointStore(place.location)
    location = store.save(5, *content(5))
    damage(place, "step_000005/model.safetensors", "flip")
    found = open_checkpoint(location, check_all=False)
    assert (found.step, found.state) == (5, content(5)[1])
    assert found.tensors("optimizer")
    with pytest.raises(DamagedCheckpoint, match=r"checksum of model\.safetensors"):
        found.tensors("model")
    damage(place, "step_000005/state.json", "flip")
    with pytest.raises(DamagedCheckpoint, match=r"checksum of state\.json"):
        open_checkpoint(location, check_all=False)


def test_keeps_the_last_few(place):
    store = CheckpointStore(place.location, keep_last=2)
    for step in (1, 2, 3, 10):
        store.save(step, *content(step))
    assert store.steps() == [3, 10]
    CheckpointStore(place.location, keep_last=1).save(5, *content(5))  # 10 is not of the past: somebody went back
    assert store.steps() == [5, 10]
    assert {file.split("/")[0] for file in place.files() if "step" in file} == {"step_000005", "step_000010"}
    with pytest.raises(ValueError, match="keep_last"):
        CheckpointStore(place.location, keep_last=0)


def test_keeps_the_best(place):
    store = CheckpointStore(place.location, keep_last=1, keep_best=True)
    for step, score, kept in [
        (1, None, [1]),
        (2, 1.5, [2]),
        (3, float("nan"), [2, 3]),
        (4, 2.0, [2, 4]),
        (5, None, [2, 5]),
        (6, 1.5, [6]),
        (7, float("-inf"), [6, 7]),
        (8, 1.0, [8]),
    ]:
        store.save(step, *content(step), score)
        assert store.steps() == kept


def test_the_same_step_again_replaces_it(place):
    store = CheckpointStore(place.location)
    store.save(3, {**content(3)[0], "more": {}}, {})
    store.save(3, content(3)[0], {"done": True})
    assert store.newest(refuse_warnings).state == {"done": True}
    assert [file for file in place.files() if "step" in file] == sorted(f"step_000003/{file}" for file in FILES)


def test_newest_of_those_wanted(place):
    store = CheckpointStore(place.location, keep_last=3)
    for step in (4, 5, 6):
        store.save(step, *content(step))
    assert_is(store.newest(refuse_warnings, lambda step: step % 5 == 0), 5)
    assert store.newest(refuse_warnings, lambda step: step > 6) is None


def test_other_things_beside_the_checkpoints_are_left_alone(place):
    store = CheckpointStore(place.location, keep_last=1)
    store.save(1, *content(1))
    place.write("step_000001.txt", b"mine")
    store.save(2, *content(2))
    assert place.read("step_000001.txt") == b"mine"
    assert store.steps() == [2]


# --- damage ---------------------------------------------------------------------------------------------------------


def damage(place: Place, file: str, how: str) -> None:
    data = place.read(file)
    if how == "remove":
        place.remove(file)
    elif how == "flip":
        middle = data.find(b'"sha256": "') + 20 if file.endswith("manifest.json") else len(data) // 2
        middle %= len(data)
        place.write(file, data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    else:
        place.write(file, {"truncate": data[: len(data) // 2], "empty": b"", "not json": b"\xffnot json"}[how])


DAMAGES = [
    *((file, how) for file in FILES for how in ("flip", "truncate", "empty", "remove")),
    ("manifest.json", "not json"),
]


@pytest.mark.parametrize(("file", "how"), DAMAGES)
def test_damage_is_found_and_the_one_before_is_used(place, file, how):
    store = CheckpointStore(place.location)
    store.save(1, *content(1))
    location = store.save(2, *content(2))
    damage(place, f"step_000002/{file}", how)
    never_was = (file, how) == ("manifest.json", "remove") and isinstance(place.filesystem, fs.S3FileSystem)
    warnings: list[str] = []
    assert_is(store.newest(warnings.append), 1)
    assert len(warnings) == (0 if never_was else 1)
    assert all(f"{place.path}/step_000002" in text and "passed over" in text for text in warnings)
    with pytest.raises(DamagedCheckpoint, match="step_000002"):
        open_checkpoint(location)
    place.remove_directory("step_000001")
    assert store.newest(lambda text: None) is None
    store.save(2, *content(2))  # training gets there again
    assert_is(store.newest(refuse_warnings), 2)


def test_a_deleted_directory(place):
    store = CheckpointStore(place.location)
    store.save(1, *content(1))
    location = store.save(2, *content(2))
    place.remove_directory("step_000002")
    assert_is(store.newest(refuse_warnings), 1)
    with pytest.raises(CheckpointError, match=r"step_000002.* is not a checkpoint: there is no such directory"):
        open_checkpoint(location)


@pytest.mark.parametrize(
    "manifest",
    [
        [],
        {},
        {"format": 1},
        {"format": 2, "step": 2, "files": {}},
        {"format": 1, "step": 2, "files": {}},
        {"format": 1, "step": 2, "files": []},
        {"format": 1, "step": 2, "files": {"state.json": 3}},
        {"format": 1, "step": 3, "files": {"state.json": {"size": 2, "sha256": ""}}},
        {"format": 1, "step": 2, "score": "good", "files": {"state.json": {"size": 2, "sha256": ""}}},
        {"format": 1, "step": 2, "files": {"state.json": {"size": 2, "sha256": ""}, "../x": {"size": 1, "sha256": ""}}},
    ],
)
def test_a_manifest_that_makes_no_sense(place, manifest):
    location = CheckpointStore(place.location).save(2, {}, {})
    place.write("x", b"x")
    place.write("step_000002/manifest.json", json.dumps(manifest).encode())
    with pytest.raises(DamagedCheckpoint, match="step_000002") as caught:
        open_checkpoint(location)
    assert "checksum" not in caught.value.message


def test_a_manifest_from_before_there_were_scores(place):
    location = CheckpointStore(place.location).save(2, *content(2), score=1.0)
    manifest = json.loads(place.read("step_000002/manifest.json"))
    del manifest["score"]
    place.write("step_000002/manifest.json", json.dumps(manifest).encode())
    assert_is(open_checkpoint(location), 2)
    assert open_checkpoint(location).score is None


def test_not_a_checkpoint(place):
    store = CheckpointStore(place.location)
    location = store.save(2, *content(2))
    with pytest.raises(CheckpointError, match=r"no manifest\.json"):
        open_checkpoint(place.location)
    place.filesystem.move(f"{place.path}/step_000002/state.json", f"{place.path}/step_000002/other.json")
    with pytest.raises(CheckpointError, match=r"state\.json is missing"):
        open_checkpoint(location)


# --- retention ------------------------------------------------------------------------------------------------------

saves = st.tuples(
    st.integers(0, 9),
    st.none() | st.floats(0.5, 3.0) | st.sampled_from([1.0, float("nan"), float("inf")]),
    st.none() | st.tuples(st.integers(0, 99), st.sampled_from([*DAMAGES, ("", "gone")])),
)


@settings(max_examples=80)
@given(
    keep_last=st.integers(1, 3), keep_best=st.booleans(), in_order=st.booleans(), history=st.lists(saves, max_size=9)
)
def test_retention(tmp_path_factory, keep_last, keep_best, in_order, history):
    """Checkpoints are saved, in order or going back, and damaged in between, as they please."""
    directory = tmp_path_factory.mktemp("retention") / "c"
    place = Place(directory, fs.LocalFileSystem(), str(directory))
    store = CheckpointStore(directory, keep_last=keep_last, keep_best=keep_best)
    for number, (any_step, score, harm) in enumerate(history):
        step = number if in_order else any_step
        whole, later = store.newest(lambda text: None), [found for found in store.steps() if found > step]
        scores = {found: score for found, score in seen_sound(store).items() if found < step}
        store.save(step, {"model": {"x": torch.zeros(4)}}, {"number": number}, score)
        steps, kept = store.steps(), seen_sound(store)
        scores[step] = kept[step]

        assert store.open(step).state == {"number": number}
        assert store.newest(lambda text: None).step == max(step, whole.step if whole else 0)
        assert [found for found in steps if found > step] == later
        assert len(steps) - len(later) <= keep_last + keep_best
        assert set(sorted(scores)[-keep_last:]) <= kept.keys()
        measured = {found: score for found, score in scores.items() if score is not None}
        if keep_best and measured:
            assert min(measured.values()) in [kept[found] for found in measured.keys() & kept.keys()]

        if harm:
            which, (file, how) = harm
            victim = f"step_{steps[which % len(steps)]:06d}"
            if how == "gone":
                place.remove_directory(victim)
            elif place.size(f"{victim}/{file}"):
                damage(place, f"{victim}/{file}", how)


def seen_sound(store: CheckpointStore) -> dict[int, float | None]:
    """Step -> score of those in which nothing is seen to be wrong without reading the tensors."""
    scores = {}
    for step in store.steps():
        with suppress(CheckpointError):
            scores[step] = open_checkpoint(store.directory / f"step_{step:06d}", check_all=False).score
    return scores


def test_nothing_is_removed_for_one_that_did_not_arrive(place):
    def fault(point: str) -> None:
        if point in ("renamed", "sent manifest.json"):
            damage(place, "step_000002/optimizer.safetensors", "truncate")

    CheckpointStore(place.location).save(1, *content(1))
    store = CheckpointStore(place.location, keep_last=1, fault=fault)
    with pytest.raises(CheckpointError, match=r"step_000002.*optimizer\.safetensors has"):
        store.save(2, *content(2))
    warnings: list[str] = []
    assert_is(store.newest(warnings.append), 1)
    assert len(warnings) == 1
