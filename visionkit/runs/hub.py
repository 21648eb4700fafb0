"""Files of weights on the Hugging Face Hub, by `hf://owner/name[@revision][/file]`.

The package `huggingface-hub` downloads into its own cache and asks the server that HF_ENDPOINT
names. A folder that VISIONKIT_WEIGHTS names is searched first, at `owner/name[@revision]/file`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from visionkit.errors import CheckpointError, ConfigError, install_hint, listed, printable, shorten
from visionkit.runs import files
from visionkit.runs.download import OFFLINE, SETTING, is_offline, is_url, without_login

DEFAULT = "model.safetensors"  # the file of a repository
PATTERN = re.compile(
    r"hf:/{1,2}([\w.-]+/[\w.-]+)(?:@([\w.%-]+))?(?:/(.+))?"
)  # a Path merges slashes


class Address(NamedTuple):
    """What `hf://` and the rest name."""

    repo: str
    revision: str | None
    file: str

    def __str__(self) -> str:
        revision = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return f"hf://{self.repo}{revision}/{self.file}"


def is_hub(text: str | os.PathLike[str]) -> bool:
    return os.fspath(text).startswith("hf:/")


def parse(text: str | os.PathLike[str]) -> Address:
    """The parts of an address; ConfigError for another form."""
    match = PATTERN.fullmatch(os.fspath(text))
    parts = [] if match is None else [*match[1].split("/"), *(match[3] or DEFAULT).split("/")]
    if match is None or {"", ".", ".."} & {*parts}:
        raise ConfigError(
            f"{os.fspath(text)}: expected hf://owner/name[@revision][/file], such as "
            f"hf://owner/name/{DEFAULT}"
        )
    return Address(match[1], match[2] and unquote(match[2]), match[3] or DEFAULT)


def fetch(text: str | os.PathLike[str]) -> Path:
    """The file at that address: of the folder VISIONKIT_WEIGHTS, of the hub's cache, or downloaded.

    CheckpointError, with why and what to do, if there is none.
    """
    address = parse(text)
    if found := _in_folder(address):
        return found
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors  # not its attributes until then
    except Exception as error:  # an incomplete installation may raise anything
        raise CheckpointError(
            f"{address}: needs the package huggingface-hub: {error}; run: {install_hint('hub')}"
        ) from error
    endpoint = os.environ.get("HF_ENDPOINT") or None  # the package reads it only when imported
    try:
        path = huggingface_hub.hf_hub_download(
            address.repo,
            address.file,
            revision=address.revision,
            local_files_only=is_offline(),
            endpoint=endpoint,
        )
    except Exception as error:  # of the package, of its HTTP library, of the disk
        why = _why(error, errors, constants, endpoint, address)
        if isinstance(error, errors.RemoteEntryNotFoundError):
            why += _others(address, huggingface_hub, endpoint)
        raise CheckpointError(f"{address}: {why}", *_hints(address)) from error
    return Path(path)


def at_hand(text: str) -> Path | None:
    """The file at that address, if it is in the folder VISIONKIT_WEIGHTS or in the hub's cache."""
    address = parse(text)
    if found := _in_folder(address):
        return found
    try:
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(address.repo, address.file, revision=address.revision)
    except Exception:  # an incomplete installation may raise anything
        return None
    return Path(path) if isinstance(path, str) else None


def _in_folder(address: Address) -> Path | None:
    given = os.environ.get(SETTING, "")
    if not given or is_url(given):
        return None
    revision = f"@{address.revision}" if address.revision else ""
    path = Path(given) / f"{address.repo}{revision}" / address.file
    return path if path.is_file() else None


def _why(
    error: Exception, kinds: Any, constants: Any, endpoint: str | None, address: Address
) -> str:
    """Why the file could not be had, in words. Each class of error is tried before its bases."""
    server = without_login(endpoint or constants.ENDPOINT)
    if isinstance(error, kinds.LocalEntryNotFoundError | kinds.OfflineModeIsEnabled):
        cache = f"is not in {constants.HF_HUB_CACHE}"
        if is_offline():
            return f"{cache}, and downloads are off (--offline or {OFFLINE})"
        if isinstance(error, kinds.OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
            return f"{cache}, and downloads are off (HF_HUB_OFFLINE)"
        return f"{cache}, and {_answer(server, error)}"
    if isinstance(error, kinds.GatedRepoError):
        return (
            f"{server} asks for consent: accept the conditions on the page of {address.repo}, then "
            "log in (hf auth login, or HF_TOKEN)"
        )
    if isinstance(error, kinds.RepositoryNotFoundError):
        return f"{server}: repository not found, or private: log in (hf auth login or HF_TOKEN)"
    if isinstance(error, kinds.RevisionNotFoundError):
        return f"the repository has no revision {address.revision!r}"
    if isinstance(error, kinds.EntryNotFoundError):
        return f"the repository has no file {address.file!r}"
    if isinstance(error, kinds.HFValidationError):
        return f"is not a name of a repository: {shorten(printable(str(error)), 200)}"
    return _answer(server, error)


def _answer(server: str, error: BaseException) -> str:
    """What the server answered, or why it did not; from the first cause, which says most."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    text = shorten(printable(files.reason(error) or type(error).__name__), 200)
    if status := getattr(getattr(error, "response", None), "status_code", None):
        return f"{server} answers {status}: {text}"
    return f"there is no answer from {server}: {text}"


def _others(address: Address, package: Any, endpoint: str | None) -> str:
    """A clause with the files of the repository that may have weights."""
    try:
        names = package.HfApi(endpoint=endpoint).list_repo_files(
            address.repo, revision=address.revision
        )
    except Exception:  # only a help
        return ""
    found = [name for name in names if Path(name).suffix.lower() in files.WEIGHTS]
    return f"; it has {listed(found, 5)}" if found else "; it has no files of weights"


def _hints(address: Address) -> list[str]:
    return [
        f"  fetch {address.file} elsewhere and give its path, or put it into a folder that "
        f"{SETTING} names, as {address.repo}/{address.file}"
    ]
