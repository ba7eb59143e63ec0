"""What `mopd push` does: a run's student goes to a repository of the Hub, and what arrived is compared."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mopd.distill.errors import RunError, UserError
from mopd.distill.storage import digest_of
from mopd.recipes.resolve.damage import refuse_damaged
from mopd.recipes.resolve.run_folder import RECIPE

BESIDES = (RECIPE, "seesaw.json")
"""Files of the run's folder that go with the weights."""
AGAIN = "have the run make it again (`mopd audit` says what is damaged)"


@dataclass(frozen=True, slots=True)
class Pushed:
    """What is in the repository now.

    Attributes:
        repo: its name.
        url: of the commit.
        commit: its id.
        files: of the commit, each compared with the file it was made from.
        bytes: of all of them.
    """

    repo: str
    url: str
    commit: str
    files: int
    bytes: int


def push(
    run: Path,
    repo: str,
    *,
    adapter: bool = False,
    private: bool = True,
    revision: str | None = None,
    endpoint: str | None = None,
) -> Pushed:
    """Send a finished run's student to the Hub: weights, tokenizer, model card, recipe and seesaw, in one commit.

    Args:
        repo: ``NAMESPACE/NAME``; it is made where there is none.
        adapter: the adapter that was trained, in the place of the whole model that it was added into.
        private: of a repository that is made; one that is there stays as it is.
        revision: a branch of it, made where there is none; None: main.
        endpoint: the Hub's address; None: HF_ENDPOINT, else that of Hugging Face.

    Raises:
        UserError: there is no such student, it is damaged, or the Hub does not let it in.
        RunError: what arrived is not what lies here.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    files = dict(_files(run, adapter=adapter))
    api = HfApi(endpoint=endpoint, library_name="mopd")
    where = f"{api.endpoint}, repository {repo}"
    if get_token() is None:
        raise UserError(f"{where}: no token; `hf auth login`, or set HF_TOKEN to one that may write")
    try:
        name = api.create_repo(repo, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        operations = [CommitOperationAdd(path, str(file)) for path, file in files.items()]
        done = api.create_commit(name, operations, commit_message=f"{run.resolve().name}, by mopd", revision=revision)
        arrived = {each.path: each for each in api.get_paths_info(name, [*files], revision=done.oid)}
    except HFValidationError as error:
        raise UserError(f"--repo {repo}: {error!s:.300}") from error
    except HfHubHTTPError as error:
        remedy = "HF_TOKEN, or `hf auth login`, must give a token that may write there"
        raise UserError(f"{where}: refused ({' '.join(str(error).split()):.300}); {remedy}") from error
    except Exception as error:  # no network, no route, a proxy's refusal, a time-out
        raise UserError(f"{where}: cannot be reached ({type(error).__name__}: {error!s:.200})") from error
    if wrong := [path for path, file in files.items() if not _same(file, arrived.get(path))]:
        raise RunError(f"{where}: {', '.join(wrong)} arrived otherwise than it lies in {run}; push it again")
    return Pushed(name, done.commit_url, done.oid, len(files), sum(file.stat().st_size for file in files.values()))


def _files(run: Path, *, adapter: bool) -> Iterator[tuple[str, Path]]:
    """What goes there, by its path in the repository.

    Raises:
        UserError: the run has no such student, or it is damaged.
    """
    if not (run / RECIPE).is_file():
        raise UserError(f"{run} is no run's folder: it holds no {RECIPE}")
    folder = run / "student"
    if not (folder / "config.json").is_file():
        raise UserError(f"{run} holds no student yet; a run writes it as it ends (`mopd ls` says how it stands)")
    if adapter and not (folder := run / "adapter").is_dir():
        raise UserError(f"{run} holds no adapter: its student was trained whole; push without --adapter")
    refuse_damaged(folder, AGAIN)
    inside = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    named: Mapping[str, Path] = {path.relative_to(folder).as_posix(): path for path in inside}
    yield from named.items()
    yield from ((name, run / name) for name in BESIDES if (run / name).is_file() and name not in named)


def _same(file: Path, arrived: Any) -> bool:
    """Whether what the Hub says of a file fits: its SHA-256 where it lies in large storage, else git's own hash."""
    if arrived is None or arrived.size != file.stat().st_size:
        return False
    if arrived.lfs is not None:
        return arrived.lfs.sha256 == digest_of(file).sha256
    content = file.read_bytes()
    return arrived.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
