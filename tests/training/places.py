"""Places to keep checkpoints in: a directory, and a bucket on a real S3 server on loopback."""

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from moto.moto_server.threaded_moto_server import ThreadedMotoServer
from pyarrow import fs

BUCKET = "checkpoints"


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
