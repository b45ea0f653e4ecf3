"""Put the section "Explanations" into the card of a model on the Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_token,
    is_offline_mode,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # its own client

from hf_gmar._utils.files import absence, kind_of
from hf_gmar.errors import PushError, shortened
from hf_gmar.report.model_card import END, PICTURES, SECTION, START, insert_section

_CARD = constants.REPOCARD_NAME
_OURS = re.compile(rf"{PICTURES}/example-\d+\.webp")
_LOG_IN = (
    "log in with 'hf auth login' and a token that may write, or give one (token=, on the command "
    "line --token)"
)


def check_push(
    repo_id: str, *, token: str | bool | None = None, revision: str | None = None
) -> str:
    """Check that someone is logged in and that the repository exists, before long work.

    Only the push itself shows whether the token may write.

    Args:
        repo_id: the repository of the model, such as ``"me/my-vit"``.
        token: see :func:`push_card`.
        revision: see :func:`push_card`.

    Returns:
        The name of the user.

    Raises:
        PushError: as of :func:`push_card`.
    """
    api = _api(token)
    with _explained(repo_id, revision):
        user: str = api.whoami()["name"]
        api.model_info(repo_id, revision=revision)
    return user


def push_card(
    folder: str | Path,
    repo_id: str,
    *,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Put the section of :func:`save_card` into the card of a model on the Hub, in one commit.

    An older section between the same marks is replaced, with its pictures; everything else in the
    card stays as it is. A repository without a card gets one.

    Args:
        folder: the folder of the section.
        repo_id: the repository of the model, such as ``"me/my-vit"``.
        token: a token that may write; ``None`` and ``True`` take the logged-in user's.
        revision: the branch, by default ``main``.
        create_pr: propose the change as a pull request, for models of others.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        PushError: there is no section, no one is logged in, there is no such repository, the user
            may not write to it, it has changed meanwhile, or the Hub can't be reached.
    """
    folder = Path(folder)
    if kind_of(folder / SECTION) != "file":
        raise PushError(f"{absence(folder / SECTION, 'file')}; write the section first (save_card)")
    section = (folder / SECTION).read_text(encoding="utf-8")
    if not (section.startswith(START) and section.rstrip().endswith(END)):
        raise PushError(
            f"{folder / SECTION} must begin with {START} and end with {END}; write it again"
        )
    api = _api(token)
    with _explained(repo_id, revision):
        info = api.model_info(repo_id, revision=revision)
        names = [file.rfilename for file in info.siblings or ()]
        card = insert_section(_card_of(api, repo_id, info.sha), section)
        pictures = dict.fromkeys(_OURS.findall(section))
        operations: list[Any] = [CommitOperationAdd(_CARD, card.encode())]
        operations += [CommitOperationAdd(name, folder / name) for name in pictures]
        operations += [
            CommitOperationDelete(name)
            for name in names
            if _OURS.fullmatch(name) and name not in pictures
        ]
        commit = api.create_commit(
            repo_id,
            operations,
            commit_message="Explanations by hf_gmar",
            revision=revision,
            create_pr=create_pr,
            parent_commit=info.sha,  # what was read is what is changed
        )
    return str(commit.pr_url or commit.commit_url)


def _api(token: str | bool | None) -> HfApi:
    known = token if isinstance(token, str) else get_token() if token is not False else None
    if not known:
        raise PushError(f"no one is logged in, and a push needs that; {_LOG_IN}")
    return HfApi(token=known)


def _card_of(api: HfApi, repo_id: str, commit: str | None) -> str:
    """Return the card, byte for byte; a title alone where there is none."""
    try:
        path = api.hf_hub_download(repo_id, _CARD, revision=commit)
    except EntryNotFoundError:
        return f"# {repo_id.rpartition('/')[2]}\n"
    return Path(path).read_bytes().decode("utf-8-sig")


@contextmanager
def _explained(repo_id: str, revision: str | None) -> Iterator[None]:
    """Reword the errors of the Hub's client."""
    try:
        yield
    except PushError:
        raise
    except GatedRepoError as error:
        raise PushError(
            f"{repo_id!r} is gated; ask for access on {constants.ENDPOINT}/{repo_id}, then "
            f"{_LOG_IN}"
        ) from error
    except RevisionNotFoundError as error:
        raise PushError(
            f"{repo_id!r} has no branch {revision!r}; give one that it has, or leave it out"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise PushError(
            f"there is no model {repo_id!r} on {constants.ENDPOINT}, or the token may not see it; "
            "check the name of the repository (--repo-id), or create it first"
        ) from error
    except HfHubHTTPError as error:
        raise PushError(_refusal(repo_id, error)) from error
    except (httpx.HTTPError, ConnectionError) as error:
        how = "as HF_HUB_OFFLINE is set" if is_offline_mode() else f"at {constants.ENDPOINT}"
        raise PushError(f"the Hub can't be reached {how}; connect and push again") from error
    except ValueError as error:  # of the metadata
        raise PushError(
            f"the card of {repo_id!r} is refused: {shortened(' '.join(str(error).split()))}; "
            "correct the metadata at the head of its README.md"
        ) from error


def _refusal(repo_id: str, error: HfHubHTTPError) -> str:
    status = error.response.status_code
    reason = shortened(" ".join(f"{status} {error.server_message or ''}".split()))
    if status == 401:
        return f"the Hub does not accept the token ({reason}); {_LOG_IN}"
    if status == 403:
        return (
            f"the token may not write to {repo_id!r} ({reason}); {_LOG_IN}, or propose the change "
            "with create_pr=True (--create-pr)"
        )
    if status in {409, 412}:
        return f"{repo_id!r} was changed meanwhile ({reason}); push again"
    return f"the Hub refused the push to {repo_id!r} ({reason}); try again later"
