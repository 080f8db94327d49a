"""One line for the reason why files of the hub cannot be had."""

from dataclasses import dataclass

from huggingface_hub import errors
from huggingface_hub.utils import httpx

from files.error_lines import causes, error_line


@dataclass(frozen=True)
class Wanted:
    """A repository on the hub: a `kind` such as model, tokenizer or data set.

    `name` is set if the flag's value does not name the repository. `otherwise` says what else the
    user can do if the hub cannot deliver it.
    """

    kind: str
    name: str = ""
    revision: str | None = None
    otherwise: str = ""


def hub_reason(error: BaseException, wanted: Wanted) -> str | None:
    """Return why the hub did not deliver the repository; None for an error without the hub.

    Other libraries raise their errors from those of the hub's client, so all causes are searched.
    """
    chain = list(causes(error))
    for kind, reason in _REASONS.items():
        found = next((cause for cause in chain if _is(cause, kind)), None)
        if found is not None:
            return _said(reason, found, wanted)
    return None


def _is(error: BaseException, kind: type[BaseException]) -> bool:
    """Return whether the error is of the kind; a bare HTTP error must match exactly."""
    return type(error) is kind if kind is errors.HfHubHTTPError else isinstance(error, kind)


def _said(reason: str, error: BaseException, wanted: Wanted) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    advice = "check HF_TOKEN" if status in _REFUSED else "try again later"
    said = reason.format(
        name=f"{wanted.name} ".lstrip(),
        kind=wanted.kind,
        revision=wanted.revision or "main",
        error=error_line(error),
        status=f"{status}",
        advice=advice,
    )
    return said if reason.startswith("{name}") else said + wanted.otherwise


_REFUSED = (401, 403)
_UNREACHABLE = "the hub cannot be reached, and the local cache lacks it"


# The order counts: a gated repository's error is also a not-found error, and a refusal by the hub
# causes the error of an entry that the cache lacks.
_REASONS: dict[type[BaseException], str] = {
    errors.GatedRepoError: "{name}is gated; accept its licence on the hub and set HF_TOKEN",
    errors.RepositoryNotFoundError: "{name}is neither a folder here nor a {kind} on the hub",
    errors.RevisionNotFoundError: "{name}has no revision {revision} on the hub",
    errors.DisabledRepoError: "{name}is disabled on the hub",
    errors.HFValidationError: "{name}is neither a folder here nor a valid name on the hub",
    errors.OfflineModeIsEnabled: "{name}is not in the local cache, and offline mode is on",
    errors.HfHubHTTPError: "the hub answers with HTTP status {status}, and the local cache "
    "lacks it; {advice}",
    errors.FileMetadataError: "HF_ENDPOINT names no hub, and the local cache lacks it",
    errors.LocalEntryNotFoundError: _UNREACHABLE,
    httpx.ConnectError: _UNREACHABLE,
    httpx.ConnectTimeout: _UNREACHABLE,
    httpx.ProxyError: _UNREACHABLE,
    ConnectionError: _UNREACHABLE,
    httpx.TransportError: "the download broke off ({error}); start again",
}
