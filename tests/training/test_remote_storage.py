"""A remote storage that fails: cut off, gone, silent, forbidden, misspelt."""

import pickle
import socket
import threading
import time
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from nanochat.training import storage
from nanochat.training.checkpoint import CheckpointError, CheckpointStore, DamagedCheckpoint, open_checkpoint
from tests.training.places import s3_place, s3_server, uri
from tests.training.test_checkpoint import FILES, assert_is, content, refuse_warnings

SENT = [f"sent {name}" for name in FILES]


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
