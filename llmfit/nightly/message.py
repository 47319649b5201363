"""A few lines about a report for a chat, and their way there: JSON that Slack and others take."""

from __future__ import annotations

import json
import os
import re
from http.client import HTTPException
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from llmfit.errors import StoreError, UsageError
from llmfit.network import is_offline
from llmfit.redaction import known_secrets
from llmfit.report._text import in_chat, plain
from llmfit.report.night import not_done, summary
from llmfit.report.regressions import cell_line, grouped
from llmfit.trend_records import Report

WEBHOOK_VARIABLE = "LLMFIT_WEBHOOK_URL"
"""The address is a secret: it is in the environment, and in no command line or file."""
_TIMEOUT_S = 20
_MESSAGE_LINES = 10
_PATH = re.compile(
    r"(?<![\w:/.])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\",;:()]+[/\\])*([^\s/\\'\",;:()]*)"
)


def message_text(report: Report) -> str:
    """Some lines for a chat: what became worse and what was not done, no path and no secret."""
    lines = [f"{plain(report.title)}: {summary(report)}"]
    for group in grouped(report.regressions):
        lines += [f"• {group.head}", *(f"   {line}" for line in group.lines)]
    lines += [f"• {cell_line(cell)}" for cell in not_done(report)]
    if len(lines) > _MESSAGE_LINES:
        lines = [*lines[:_MESSAGE_LINES], f"… and {len(lines) - _MESSAGE_LINES} more"]
    return in_chat(without_private("\n".join(lines)))


def without_private(text: str) -> str:
    """``text`` with absolute paths cut to their last part, and without secrets."""
    text = known_secrets().hide(text)
    return _PATH.sub(lambda found: f"…/{found.group(1)}" if found.group(1) else "…/", text)


def webhook_url() -> str:
    """The webhook's address from the environment.

    Raises UsageError where there is none, or no network is to be used.
    """
    if is_offline():
        raise UsageError(
            "--offline and --webhook exclude each other: a webhook is on the network.",
            hint="drop one",
        )
    url = os.environ.get(WEBHOOK_VARIABLE, "")
    if urlsplit(url).scheme not in ("https", "http"):
        raise UsageError(
            f"{WEBHOOK_VARIABLE} holds no http address.",
            hint=f"export {WEBHOOK_VARIABLE}=https://…",
        )
    return url


def post_message(text: str, url: str) -> None:
    """Send ``{"text": …}``. Raises StoreError, which does not tell the address."""
    body = json.dumps({"text": text}).encode()
    request = Request(url, data=body, headers={"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=_TIMEOUT_S):  # the scheme was checked: http alone
            return
    except (OSError, HTTPException, ValueError) as exc:  # URLError is an OSError
        reason = getattr(exc, "reason", exc)
        raise StoreError(f"the webhook did not take the message: {reason}.") from exc
