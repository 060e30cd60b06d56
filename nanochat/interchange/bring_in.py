"""From a model of another program to a run's directory, made once and kept in the cache."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id
from torch import Tensor

from nanochat.data.hub import check_disk, endpoint
from nanochat.data.sources import cache_directory
from nanochat.errors import UserError
from nanochat.files import exclusive, write_json
from nanochat.inference.load import find_run
from nanochat.interchange.public import find_public, read_public
from nanochat.interchange.transformers_format import config_of, has_template, read_transformers
from nanochat.model import ModelConfig
from nanochat.run import read_json
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.bpe import FILE_NAME
from nanochat.training.checkpoint import CheckpointStore

HUB = "hf:"
FORMAT = 1  # raise it whenever the same files would give another model
REACH_S = 5.0

Say = Callable[[str], None]
Read = Callable[[], tuple[ModelConfig, dict[str, Tensor], Tokenizer]]


def find_model(name: str, runs_dir: Path, say: Say = lambda text: None) -> Path:
    """The directory of a run, by its name in `runs_dir` or by its path, or what `brought_in` makes of the name.

    Raises UserError as both.
    """
    of_a_run = Path(name).name == name and (runs_dir / name).is_dir()
    found = None if of_a_run or not name else brought_in(name, cache_directory(), say)
    return found or find_run(name, runs_dir)


def brought_in(source: str, cache: Path, say: Say = lambda text: None) -> Path | None:
    """The directory, like that of a run, of the model at `hf:owner/name[@revision]` or at a path in a format of public
    nanochat or of transformers; None where there is no such thing.

    Raises UserError: it cannot be had, is damaged, or is another kind of model; each with what is wrong.
    """
    if source.startswith(HUB):
        path = _fetched(source.removeprefix(HUB), cache, say)
    else:
        path = Path(source).absolute()
        if not path.exists():
            return None
    if found := find_public(path):
        return _kept(found.files, found.stage, found.step, lambda: read_public(found), cache, say)
    if (path / "config.json").is_file() and list(path.glob("*.safetensors")):
        files = (*sorted(path.glob("*.safetensors")), *sorted(path.glob("*.json")))
        stage = "sft" if has_template(path) else "base"
        return _kept(files, stage, 0, lambda: read_transformers(path), cache, say)
    if source.startswith(HUB):
        raise _nothing_in(source)
    return None


def _nothing_in(source: str) -> UserError:
    return UserError(
        f"{source} holds no model of nanochat: neither model_*.pt and meta_*.json nor config.json and safetensors",
        "name another repository",
    )


def _kept(files: tuple[Path, ...], stage: str, step: int, read: Read, cache: Path, say: Say) -> Path:
    """The directory of what is made of these files, made now if it is not there."""
    known = json.dumps([FORMAT, stage, step, *([str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns]
                                               for file in files)])  # fmt: skip
    directory = cache / "brought_in" / f"{files[0].parent.name}-{hashlib.sha256(known.encode()).hexdigest()[:12]}"
    store = CheckpointStore(directory / stage / "checkpoints")
    directory.mkdir(parents=True, exist_ok=True)
    with exclusive(directory / ".lock"):
        if not (store.steps() and (directory / "tokenizer" / FILE_NAME).exists()):
            say(f"bringing in {files[0]}")
            config, parameters, tokenizer = read()
            tokenizer.save(directory / "tokenizer")
            state = {"stage": stage, "model": asdict(config), "tokenizer": tokenizer.fingerprint}
            store.save(step, {"model": parameters}, {**state, "source": str(files[0])})
    return directory


def _fetched(name: str, cache: Path, say: Say) -> Path:
    """The folder of a repository's files, as far as they are needed."""
    repository, _, at = name.partition("@")
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise UserError(f"{HUB}{name} names no repository", f"write {HUB}owner/name")
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"{HUB}{name} names no repository: {error}", f"write {HUB}owner/name") from None
    folder = cache / "hub"
    fetch = partial(snapshot_download, repository, revision=at or None, cache_dir=folder, etag_timeout=REACH_S)
    known = folder / f"{name.replace('/', '--')}.files.json"  # what of it was wanted, for when it cannot be asked
    try:
        files = HfApi(endpoint()).model_info(repository, revision=at or None, timeout=REACH_S).siblings or []
        wanted = _needed([file.rfilename for file in files])
        if not wanted:
            raise _nothing_in(f"{HUB}{name}")
        say(f"fetching {repository} from the hub")
        if "config.json" in wanted:  # small, and says whether the rest is worth fetching
            config_of(Path(fetch(allow_patterns=["config.json"], endpoint=endpoint())) / "config.json")
        found = Path(fetch(allow_patterns=wanted, endpoint=endpoint()))
        write_json(known, {"wanted": wanted})
        return found
    except OfflineModeIsEnabled:
        pass
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if 400 <= status < 500:
            raise UserError(
                f"the hub has no {repository} for you ({status})", "check the name; private ones need HF_TOKEN"
            ) from None
    except (HTTPError, OSError) as error:
        check_disk(error, folder)
    try:
        return Path(fetch(allow_patterns=read_json(known)["wanted"], local_files_only=True))
    except (UserError, KeyError, OSError, ValueError):
        raise UserError(
            f"cannot reach {endpoint()} for {repository}, and it was not fetched before",
            "check the network, name a mirror in HF_ENDPOINT, or give the path of a folder",
        ) from None


def _needed(files: list[str]) -> list[str]:
    """Of a repository's files, those of its last public checkpoint, or else those of transformers; none where it has
    neither."""
    models = sorted((file for file in files if file.rpartition("/")[2].startswith("model_") and file.endswith(".pt")),
                    key=lambda file: (file.rpartition("/")[0], file))  # fmt: skip
    if not models:
        found = [file for file in files if "/" not in file and file.endswith((".safetensors", ".json", ".jinja"))]
        is_model = "config.json" in found and any(file.endswith(".safetensors") for file in found)
        return found if is_model else []
    folder, slash, last = models[-1].rpartition("/")
    meta = last.replace("model_", "meta_", 1).removesuffix(".pt") + ".json"
    return [models[-1], f"{folder}{slash}{meta}", "*tokenizer.pkl"]
