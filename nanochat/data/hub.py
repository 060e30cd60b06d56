"""Shards of a corpus from the data hub: fetched ahead of their use, each whole and checked or not there at all.

A shard that is there is never asked for again, so what was fetched once needs no network. One that was cut off goes on
where it stopped, in this process or a later one; of several processes that want the same shard one fetches it.
"""

import hashlib
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, disable_progress_bars, get_session
from huggingface_hub.utils.logging import set_verbosity_error

from nanochat.corpora import Corpus
from nanochat.errors import FULL_DISK, UserError
from nanochat.files import exclusive, flush

AT_ONCE = 4  # shards
REACH_S = 5.0  # for the hub to answer before anything is begun
PATIENCE_S = 600.0  # without anything new from the hub, once something is begun
LONGEST_PAUSE_S = 30.0
MOST_WRONG = 3  # whole files that were not what the hub says they are
SAY_FIRST_S, SAY_EVERY_S = 1.0, 5.0
_POLL_S = 0.1
_PASSING = (408, 429)  # of the answers that blame the request, those worth asking again
HINT = "check the network, name a mirror in HF_ENDPOINT, or take --data tinyworld or --data PATH"


def endpoint() -> str:
    """The hub: HF_ENDPOINT as it is now, or the public one."""
    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


@dataclass(frozen=True)
class CorpusFiles:
    """Paths of some shards of a corpus, each fetched when it is asked for, the next ones meanwhile.

    Attributes:
        folder: where they are kept.
        shards: their numbers, in order.
        ahead: how many of them are expected to be needed: no others are fetched before they are asked for.
        say: told what is waited for; does not go along to another process.
        patience_s: see `Download`.
    """

    corpus: Corpus
    folder: Path
    shards: Sequence[int]
    ahead: int = 1
    say: Callable[[str], None] = lambda text: None
    patience_s: float = PATIENCE_S

    def __reduce__(self) -> tuple:
        return CorpusFiles, (self.corpus, self.folder, self.shards, self.ahead)

    def __iter__(self) -> Iterator[Path]:
        """Raises UserError: a shard cannot be had."""
        begun: deque[Download] = deque()
        waiting = iter(enumerate(self.shards))
        following = next(waiting, None)
        while following or begun:
            while following and len(begun) < AT_ONCE and (not begun or following[0] < self.ahead):
                begun.append(Download(self.corpus, following[1], self.folder, self.patience_s))
                following = next(waiting, None)
            yield self._arrived(begun.popleft())

    def _arrived(self, download: "Download") -> Path:
        said = time.monotonic() + SAY_FIRST_S - SAY_EVERY_S
        while not download.ended.wait(_POLL_S):
            if time.monotonic() - said > SAY_EVERY_S:
                said = time.monotonic()
                self.say(f"waiting for {download.describe()}")
        return download.path_or_error()


class Download:
    """One shard on its way, on a thread that ends with the process: what it leaves behind, the next one goes on with.

    Args:
        patience_s: how long nothing new may come before it is given up.
    """

    def __init__(self, corpus: Corpus, shard: int, folder: Path, patience_s: float) -> None:
        self.corpus, self.shard, self.patience_s = corpus, shard, patience_s
        self.path = folder / corpus.file(shard)
        self.partial = folder / f".{self.path.name}.partial"
        self.url = _url(corpus, self.path.name)
        self.size: int | None = None  # bytes, once the hub has said so
        self.error: Exception | None = None
        self.ended = threading.Event()
        threading.Thread(target=self._run, name=f"download-{shard}", daemon=True).start()

    def describe(self) -> str:
        """For people, such as "shard 3 of climbmix, 42% of 98.3 MB"."""
        size = self.size or self.corpus.shard_bytes
        arrived = _bytes_of(self.partial) / size
        return f"shard {self.shard} of {self.corpus.name}, {arrived:.0%} of {size / 1e6:,.1f} MB"

    def path_or_error(self) -> Path:
        """The file, once `ended`. Raises what stood against it."""
        if self.error:
            raise self.error
        return self.path

    def _run(self) -> None:
        try:
            self._fetch()
        except Exception as error:  # raised where the file is waited for
            self.error = error
        self.ended.set()

    def _fetch(self) -> None:
        if self.path.exists():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        since, pause, wrong = time.monotonic(), 0.5, 0
        while True:
            before = _bytes_of(self.partial)
            try:
                if self._attempt():
                    return
                wrong += 1
                reason = "what arrives is not what the hub says it is (SHA-256)"
                if wrong == MOST_WRONG:
                    raise _unreachable(self.corpus, self.path.name, reason)
            except (HTTPError, OSError) as error:
                self._raise_if_final(error)
                reason = _reason(error)
            if _bytes_of(self.partial) > before:
                since, pause = time.monotonic(), 0.5
            if time.monotonic() + pause > since + self.patience_s:
                raise _unreachable(self.corpus, self.path.name, reason)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _attempt(self) -> bool:
        """Fetch what is missing. Returns whether the whole is right; if not, it is gone."""
        self.size, sha256 = ask(self.corpus, self.url)
        with exclusive(self.partial.with_suffix(".lock")):  # waits for another process that fetches it
            if self.path.exists():
                return True
            if _bytes_of(self.partial) > self.size:
                self.partial.unlink()
            with self.partial.open("ab") as file:
                http_get(
                    self.url, file, resume_size=file.tell(), expected_size=self.size, headers=build_hf_headers(),
                    displayed_filename=self.path.name,
                )  # fmt: skip
            with self.partial.open("rb") as file:
                right = hashlib.file_digest(file, "sha256").hexdigest() == sha256
            if not right:
                self.partial.unlink()
                return False
            flush(self.partial)
            os.replace(self.partial, self.path)
            flush(self.path.parent)
            return True

    def _raise_if_final(self, error: Exception) -> None:
        """Raises UserError for what trying again does not change."""
        check_disk(error, self.path.parent)
        if _final(error):
            raise _unreachable(self.corpus, self.path.name, _reason(error)) from error


def check_disk(error: Exception, folder: Path) -> None:
    """Raises UserError where not the hub but this machine kept a file from being fetched to a folder."""
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        raise UserError(f"the disk is full at {folder}", "make room, and the same command goes on") from error
    if isinstance(error, PermissionError):
        raise UserError(
            f"{error.filename or folder} cannot be written: {error.strerror}", "check who owns it"
        ) from error


def ask(corpus: Corpus, url: str) -> tuple[int, str]:
    """Size in bytes and SHA-256 (hex) of a file, by the hub.

    Raises:
        UserError: the hub refuses, or who answers is no data hub.
        HTTPError, OSError: no answer, or an error that may pass.
    """
    disable_progress_bars()  # what happens is told by who waits
    set_verbosity_error()
    try:
        about = get_hf_file_metadata(url, timeout=REACH_S, endpoint=endpoint())
    except HfHubHTTPError as error:
        if _final(error):
            raise _unreachable(corpus, url.rpartition("/")[2], _reason(error)) from error
        raise
    if about.size is None or not about.commit_hash or not re.fullmatch("[0-9a-f]{64}", about.etag or ""):
        raise UserError(f"{endpoint()} answers for {corpus.repository}, but not as a data hub does", HINT)
    return about.size, str(about.etag)


def check_reachable(corpus: Corpus, shards: Iterable[int], folder: Path, within_s: float = REACH_S) -> None:
    """Ask the hub for the first of the shards that is not there yet, if any.

    Raises:
        UserError: it is not to be had, said within `within_s` seconds whatever the network does.
    """
    missing = next((shard for shard in shards if not (folder / corpus.file(shard)).exists()), None)
    if missing is None:
        return
    file = corpus.file(missing)
    found: list[UserError | None] = []
    # A thread, because looking up a name cannot be broken off.
    thread = threading.Thread(target=lambda: found.append(_probe(corpus, file, within_s - 1)), daemon=True)
    thread.start()
    thread.join(within_s)
    error = found[0] if found else _unreachable(corpus, file, f"no answer within {within_s:.0f} s")
    if error:
        raise error


def answers(within_s: float = REACH_S) -> bool:
    """Whether anybody does where the hub should be, whatever they say; known within so many seconds."""
    heard: list[bool] = []

    def knock() -> None:
        with suppress(Exception):  # of the network, or of what HF_ENDPOINT says
            get_session().head(endpoint(), timeout=within_s)
            heard.append(True)

    thread = threading.Thread(target=knock, daemon=True)  # as in `check_reachable`
    thread.start()
    thread.join(within_s)
    return bool(heard)


def _probe(corpus: Corpus, file: str, within_s: float) -> UserError | None:
    """What stands against fetching a file."""
    until = time.monotonic() + within_s
    while True:
        try:
            ask(corpus, _url(corpus, file))
            return None
        except UserError as error:
            return error
        except (HTTPError, OSError) as error:
            if time.monotonic() > until:
                return _unreachable(corpus, file, _reason(error))
        time.sleep(0.5)


def _final(error: Exception) -> bool:
    """Whether the hub refuses for good."""
    if not isinstance(error, HfHubHTTPError):
        return False
    return 400 <= error.response.status_code < 500 and error.response.status_code not in _PASSING


def _reason(error: Exception) -> str:
    if isinstance(error, HfHubHTTPError):
        return f"it answers {error.response.status_code} {error.response.reason_phrase}"
    return (str(error).splitlines() or [""])[0].strip() or type(error).__name__


def _url(corpus: Corpus, file: str) -> str:
    return hf_hub_url(corpus.repository, file, repo_type="dataset", endpoint=endpoint())


def missing_bytes(corpus: Corpus, shards: Iterable[int], folder: Path) -> int:
    """About how much of these shards is still to be fetched."""
    return corpus.shard_bytes * sum(not (folder / corpus.file(shard)).exists() for shard in shards)


def _unreachable(corpus: Corpus, file: str, reason: str) -> UserError:
    return UserError(f"cannot get {file} of {corpus.repository} from {endpoint()}: {reason}", HINT)


def _bytes_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
