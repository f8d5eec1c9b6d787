"""Requests to the Hub: made again where that helps, and refusals that say what to do."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from json import JSONDecodeError
from typing import Any, TypeVar

from ..errors import ConfigError

TRIES = 5
"""How often a request is made at most; the client of the Hub makes each upload several times on its own as well."""

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds between tries: doubled each time."""

PATIENCE = 300.0
"""A server that asks for a longer pause than so many seconds is not waited for."""

CONFLICTS = (409, 412)
"""Somebody else changed the repository meanwhile: looking again and trying again helps."""

T = TypeVar("T")


class HubError(OSError):
    """The Hub refused, or could not be reached. The message says what was tried and what to do.

    Attributes:
        status: of HTTP; None where there was no answer.
    """

    status: int | None = None


def scrub(text: str, token: str | None) -> str:
    """The text without the token."""
    return text.replace(token, "***") if token else text


@dataclass(frozen=True)
class Asking:
    """Makes requests for one push.

    Attributes:
        repo_id: the repository, for messages.
        endpoint: of the Hub.
        token: in use; it appears in no message.
        repeat_lost: a commit whose answer was lost may be made again. It may not where a second pull request could
            come of it.
    """

    repo_id: str
    endpoint: str
    token: str | None
    repeat_lost: bool = True

    def __call__(self, what: str, call: Callable[[], T]) -> T:
        """The result of a call, after several tries if need be.

        Args:
            what: the call does, such as ``"sending the files"``.
            call: is made anew for each try.

        Raises:
            HubError: the Hub refused, or could not be reached. It has no cause, so that no traceback shows a request.
            ConfigError: the card's metadata is not valid.
        """
        refusal: Exception
        for attempt in range(1, TRIES + 1):
            try:
                return call()
            except Exception as error:
                refusal, wait = self._judge(error, what, attempt)
            if wait is None:
                break
            time.sleep(wait)
        raise refusal

    def _judge(self, error: Exception, what: str, attempt: int) -> tuple[Exception, float | None]:
        """What to raise in the end, and the seconds to wait before trying again; None for not at all."""
        if type(error) is ValueError and "README.md" in str(error):  # how the client says that a card is malformed
            return ConfigError(f"{scrub(str(error), self.token)}\nNothing was sent."), None
        error = root_of(error)
        response = getattr(error, "response", None)
        status = None if response is None else response.status_code
        if status is None and not is_connection(error):
            return self._foreign(error), None
        if not self.repeat_lost and _lost(error, status):
            found = HubError(
                f"The answer to the commit was lost ({self._reason(error)}), and making it again could open a second "
                f"pull request. Look at {self.endpoint}/{self.repo_id}/discussions: if it is not there, push again."
            )
            found.status = status
            return found, None
        passing = status is None or status in (408, 425, 429, *CONFLICTS) or status >= 500
        wait = pause(attempt, response) if passing else None
        last = attempt == TRIES or (wait is not None and wait > PATIENCE)
        tries = f"after {attempt} tries" if attempt > 1 else "at once"
        text = self._passing(status, tries, wait) if passing else self._refused(int(status or 0))
        found = HubError(f"{text} It happened while {what}. The answer: {self._reason(error)}")
        found.status = status
        return found, None if last else wait

    def _foreign(self, error: Exception) -> Exception:
        """Errors that are not about a request; without the token, whatever they say."""
        text = scrub(str(error), self.token)
        if type(error) is ValueError or text != str(error):
            return HubError(f"{type(error).__name__}: {text}")
        return error

    def _reason(self, error: Exception) -> str:
        text = getattr(error, "server_message", None) or str(error) or type(error).__name__
        return scrub(" ".join(text.split()), self.token)[:400]

    def _passing(self, status: int | None, tries: str, wait: float | None) -> str:
        again = "Push again later: what has arrived is not sent a second time."
        if status is None:
            return f"{self.endpoint} cannot be reached ({tries}). Check the network and HF_ENDPOINT. {again}"
        if status == 429:
            asked = f" It asks to wait {wait:.0f} seconds." if wait and wait > PATIENCE else ""
            return f"{self.endpoint} takes no more requests for now (429, {tries}).{asked} {again}"
        if status in CONFLICTS:
            return f"{self.repo_id} was changed by somebody else at the same time ({status}, {tries}). {again}"
        return f"{self.endpoint} has a fault ({status}, {tries}). {again}"

    def _refused(self, status: int) -> str:
        namespace = self.repo_id.split("/")[0]
        tokens = f"{self.endpoint}/settings/tokens"
        if status == 401:
            return (
                f"{self.endpoint} does not accept the token (401): it is wrong, expired or revoked. Log in with "
                f"`hf auth login`, or set HF_TOKEN to a token with write right from {tokens}."
            )
        if status == 403:
            return (
                f"The token has no right to write to {namespace!r} (403). Take a token with write right for "
                f"{namespace!r} from {tokens} (`hf auth login` or HF_TOKEN), or name a repository of your own."
            )
        if status == 404:
            return (
                f"{self.repo_id!r} was not found (404). Check the spelling of the namespace {namespace!r}, of the "
                "repository and of the revision, and that the token may see it."
            )
        if status == 400:
            return (
                f"The Hub takes the request for {self.repo_id!r} as malformed (400). Check the names of the files, the "
                "metadata at the top of README.md, and the revision."
            )
        return f"The Hub refused the request for {self.repo_id!r} ({status})."


def root_of(error: Exception) -> Exception:
    """The error of a request under what the client wraps it in."""
    inner: BaseException | None = error
    while inner is not None:
        if getattr(inner, "response", None) is not None or (isinstance(inner, Exception) and is_connection(inner)):
            return inner  # type: ignore[return-value]
        inner = inner.__cause__
    return error


def is_connection(error: Exception) -> bool:
    """Whether an answer is missing, or is not what the Hub speaks (a proxy's page)."""
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return False
    if isinstance(error, (HTTPError, ConnectionError, TimeoutError, JSONDecodeError)):
        return True
    return type(error).__module__.split(".")[0] == "hf_xet"


def _lost(error: Exception, status: int | None) -> bool:
    """Whether a commit may have been made although it looks failed."""
    holder: Any = getattr(error, "response", error)
    try:
        path = str(holder.request.url.path)
    except (AttributeError, RuntimeError):  # the error has no request, or none was set
        return status is None
    return "/commit/" in path and (status is None or status in (500, 502, 504))


def pause(attempt: int, response: Any) -> float:
    """Seconds to wait after the given try: what the server asks for, else twice as long each time, jittered."""
    asked = None if response is None else asked_pause(response.headers)
    if asked is not None:
        return asked + random.uniform(0, 1)
    return min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1)) * random.uniform(0.75, 1.25)


def asked_pause(headers: Any) -> float | None:
    """Seconds that ``Retry-After`` (a number or a date) or the Hub's ``ratelimit`` asks for."""
    given = (headers.get("Retry-After") or "").strip()
    if given.isdigit():
        return float(given)
    if given:
        try:
            return max(0.0, parsedate_to_datetime(given).timestamp() - time.time())
        except ValueError:
            return None
    limit = re.search(r"\br\s*=\s*0\b.*?\bt\s*=\s*(\d+)", headers.get("ratelimit") or "")
    return float(limit.group(1)) if limit else None
