"""What holds wherever checkpoints are kept: on a disk, and on a real S3 server. What only a disk does stands in
test_checkpoint.py."""

import json
import pickle
import socket
import threading
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moto.moto_server.threaded_moto_server import ThreadedMotoServer
from pyarrow import fs
from test_checkpoint import FILES, assert_is, content, refuse_warnings

from nanochat.training import storage
from nanochat.training.checkpoint import CheckpointError, CheckpointStore, DamagedCheckpoint, open_checkpoint

BUCKET = "checkpoints"
SENT = [f"sent {name}" for name in FILES]


@dataclass(frozen=True)
class Place:
    """A location for a store, and what is there as anybody else sees it."""

    location: Path | str
    filesystem: fs.FileSystem
    path: str

    def read(self, file: str) -> bytes:
        with self.filesystem.open_input_stream(f"{self.path}/{file}") as stream:
            return stream.read()

    def write(self, file: str, data: bytes) -> None:
        with self.filesystem.open_output_stream(f"{self.path}/{file}") as stream:
            stream.write(data)

    def size(self, file: str) -> int:
        return self.filesystem.get_file_info(f"{self.path}/{file}").size or 0

    def remove(self, file: str) -> None:
        self.filesystem.delete_file(f"{self.path}/{file}")

    def remove_directory(self, name: str) -> None:
        self.filesystem.delete_dir(f"{self.path}/{name}")

    def files(self) -> list[str]:
        found = self.filesystem.get_file_info(fs.FileSelector(self.path, recursive=True))
        return sorted(
            info.path.removeprefix(f"{self.path}/") for info in found if info.is_file and "/." not in info.path
        )


def uri(address: tuple[str, int], path: str, **more: str) -> str:
    query = {"scheme": "http", "endpoint_override": f"{address[0]}%3A{address[1]}", **more}
    return f"s3://{path}?" + "&".join(f"{name}={value}" for name, value in query.items())


@pytest.fixture(scope="module", autouse=True)
def credentials():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="module")
def server(credentials):
    with s3_server() as server:
        yield server


@contextmanager
def s3_server(port: int = 0):
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    filesystem, _ = fs.FileSystem.from_uri(uri(server.get_host_and_port(), BUCKET, allow_bucket_creation="true"))
    filesystem.create_dir(BUCKET)
    try:
        yield server
    finally:
        server.stop()


def s3_place(server: ThreadedMotoServer, path: str) -> Place:
    location = uri(server.get_host_and_port(), f"{BUCKET}/{path}")
    return Place(location, *fs.FileSystem.from_uri(location))


@pytest.fixture(params=["path", "plain text", "file uri", "s3"])
def place(request, tmp_path) -> Place:
    if request.param == "s3":
        return s3_place(request.getfixturevalue("server"), f"runs/{tmp_path.name}")
    location = {"path": tmp_path / "c", "plain text": f"{tmp_path}/c", "file uri": f"file://{tmp_path}/c"}[
        request.param
    ]
    return Place(location, fs.LocalFileSystem(), f"{tmp_path}/c")


@pytest.fixture
def s3(server, tmp_path) -> Place:
    return s3_place(server, f"only/{tmp_path.name}")


# --- the contract ---------------------------------------------------------------------------------------------------


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


@settings(max_examples=80, deadline=None)
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


# --- a remote storage that fails ------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.mark.parametrize("error", [OSError("cut"), Killed()], ids=["cut", "killed"])
@pytest.mark.parametrize("point", ["model", "manifest", "written", "withdrawn", *SENT])
def test_a_save_that_ends_half_way(s3, point, error):
    def fault(passed: str) -> None:
        if passed == point:
            raise error

    store = CheckpointStore(s3.location, keep_last=1)
    store.save(1, *content(1))
    with pytest.raises(Killed if isinstance(error, Killed) else CheckpointError) as caught:
        CheckpointStore(s3.location, keep_last=1, fault=fault).save(2, *content(2))
    if isinstance(error, OSError):
        assert "step 2" in caught.value.message
        assert str(s3.location) in caught.value.message
        assert caught.value.hint
    assert_is(store.newest(refuse_warnings), 2 if point == "sent manifest.json" else 1)
    assert_is(store.open(1), 1)
    store.save(3, *content(3))
    assert s3.files() == sorted(f"step_000003/{file}" for file in FILES)


@pytest.mark.parametrize("point", ["withdrawn", *SENT[:3]])
def test_replacing_half_way_never_mixes_two(s3, point):
    def fault(passed: str) -> None:
        if passed == point:
            raise Killed

    store = CheckpointStore(s3.location)
    store.save(1, *content(1))
    store.save(2, *content(3))
    with pytest.raises(Killed):
        CheckpointStore(s3.location, fault=fault).save(2, *content(2))
    assert_is(store.newest(refuse_warnings), 1)
    assert store.steps() == [1]


def test_removing_half_way(s3):
    """What could not be removed in full is no checkpoint any more, and goes with the next save."""

    class Refusing:
        def __getattr__(self, name: str):
            return getattr(s3.filesystem, name)

        def delete_dir(self, path: str) -> None:
            if "step_000001" in path:
                raise OSError("cut")

    store = CheckpointStore(s3.location, keep_last=1)
    store.save(1, *content(1))
    store._storage._filesystem = Refusing()
    with pytest.raises(CheckpointError, match="cut"):
        store.save(2, *content(2))
    assert store.steps() == [2]
    store = CheckpointStore(s3.location, keep_last=2)
    store.save(3, *content(3))
    assert {file.split("/")[0] for file in s3.files()} == {"step_000002", "step_000003"}


@pytest.mark.parametrize("point", ["model", "withdrawn", *SENT[:2]])
def test_the_server_goes_away_while_saving(tmp_path, point):
    with s3_server() as server:
        place, port = s3_place(server, tmp_path.name), server.get_host_and_port()[1]
        store = CheckpointStore(place.location)
        store.save(1, *content(1))
        store.fault = lambda passed: server.stop() if passed == point else None
        with pytest.raises(CheckpointError, match=r"step 2.*s3://") as caught:
            store.save(2, *content(2))
        assert caught.value.hint
        with pytest.raises(CheckpointError, match="cannot read s3://"):  # unknown is not the same as none
            store.newest(refuse_warnings)
    with s3_server(port):  # what was in it lives on in this process
        assert_is(store.newest(refuse_warnings), 1)


def test_the_server_goes_away_while_reading(tmp_path):
    """The newest is then unknown; passing it over would have training start from an older one, or anew."""
    with s3_server() as server:
        store = CheckpointStore(s3_place(server, tmp_path.name).location)
        store.save(1, *content(1))
        with pytest.raises(CheckpointError, match="cannot read s3://"):
            store.newest(refuse_warnings, lambda step: server.stop() is None)


def test_a_connection_cut_in_the_middle_of_a_file(s3, server):
    """Between us and the server stands one who hangs up after some megabytes, for good."""
    budget = [10**9]
    with cutting_proxy(server.get_host_and_port(), budget) as address:
        location = uri(address, s3.path)
        store = CheckpointStore(location)
        store.save(1, *content(1))
        budget[0] = 3_000_000
        with pytest.raises(CheckpointError, match="step 2"):
            store.save(2, {"model": {"weight": torch.ones(2_000_000)}, "optimizer": {}}, {})
        with pytest.raises(CheckpointError, match="cannot read s3://"):
            store.newest(refuse_warnings)
    assert_is(CheckpointStore(s3.location).newest(refuse_warnings), 1)


@contextmanager
def cutting_proxy(target: tuple[str, int], budget: list[int]):
    """Passes bytes on to the target as long as the budget of bytes towards it lasts."""

    def pump(source: socket.socket, to: socket.socket, counted: bool) -> None:
        with closing(source), closing(to):
            with suppress(OSError):
                while data := source.recv(1 << 16):
                    if counted:
                        budget[0] -= len(data)
                    if budget[0] < 0:
                        break
                    to.sendall(data)
            for end in (source, to):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection(target)
            threading.Thread(target=pump, args=(near, far, True), daemon=True).start()
            threading.Thread(target=pump, args=(far, near, False), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()
        listener.shutdown(socket.SHUT_RDWR)


class Forbidding(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(params=["nobody there", "silent", "forbidden", "no bucket", "gcs, nobody there"])
def unusable(request, monkeypatch, server):
    """A location, and what its errors say."""
    monkeypatch.setattr(storage, "S3_PATIENCE", {"connect_timeout": 1, "request_timeout": 1})
    monkeypatch.setattr(storage, "S3_ATTEMPTS", 2)
    monkeypatch.setattr(storage, "GCS_PATIENCE_S", 1)
    if request.param == "no bucket":
        yield uri(server.get_host_and_port(), "elsewhere/runs"), "bucket"
    elif request.param == "silent":
        with socket.create_server(("127.0.0.1", 0), backlog=50) as listener:
            yield uri(listener.getsockname(), "bucket/runs"), "Timeout"
    elif request.param == "forbidden":
        with ThreadingHTTPServer(("127.0.0.1", 0), Forbidding) as http:
            threading.Thread(target=http.serve_forever, daemon=True).start()
            yield uri(http.server_address, "bucket/runs"), "ACCESS_DENIED"
            http.shutdown()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = listener.getsockname()
        location = uri(address, "bucket/runs")
        yield location.replace("s3://", "gs://anonymous@") if "gcs" in request.param else location, "connect"


def test_an_unusable_location_is_told_soon(unusable):
    location, reason = unusable
    scheme = location.split("/")[0]
    store = CheckpointStore(location)
    for use in (
        lambda: store.newest(refuse_warnings),
        lambda: store.save(1, *content(1)),
        lambda: open_checkpoint(store._storage.locate("step_000001")),
        lambda: pickle.loads(pickle.dumps(storage.storage_at(location))).names(),
    ):
        start = time.monotonic()
        with pytest.raises(CheckpointError, match=f"{scheme}//.*{reason}") as caught:
            use()
        assert not isinstance(caught.value, DamagedCheckpoint)
        assert "credentials" in caught.value.hint
        assert time.monotonic() - start < 8


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("nonsense://bucket/runs", "Unrecognized"),
        ("s3://a b/runs", "syntax"),
        ("s3://bucket/runs?scheme=http&endpoint_override=localhost%3A1&typo=1", "typo"),
        ("s3:///runs", "bucket"),
        ("s3://", "bucket"),
        ("s3://key:hunter2@bucket/runs", "password"),
    ],
)
def test_a_location_that_makes_no_sense(location, says):
    for use in (CheckpointStore, open_checkpoint):
        with pytest.raises(CheckpointError, match=says) as caught:
            use(location)
        assert caught.value.hint
        assert "hunter2" not in str(caught.value)


def test_copies_of_remote_files_do_not_stay_behind(s3, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = CheckpointStore(s3.location)
    store.save(1, *content(1))
    found = store.newest(refuse_warnings)
    assert len(list(tmp_path.iterdir())) == 1
    tensors = found.tensors("model")
    del found
    assert list(tmp_path.iterdir()) == []
    assert tensors["weight"].sum() == 2100
