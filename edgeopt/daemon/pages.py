"""What the daemon shows over HTTP: health, readiness, jobs and models as JSON, a status page, the models' reports.

Pure: a path and a :class:`View` of the daemon go in, an :class:`Answer` comes out; ``http`` does the sockets. Every text
on a page is escaped, and the policy of a page allows no script and nothing from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import TypeAlias

from edgeopt.daemon import shelf
from edgeopt.daemon.metrics import CONTENT_TYPE
from edgeopt.layout import CURRENT_LINK, REPORT_FILE

Row: TypeAlias = Mapping[str, str | int | float | bool | None]

_REPORT_BYTES = 32 << 20
_STYLE = """
:root{color-scheme:light dark;font:16px/1.5 system-ui,sans-serif}
body{max-width:60rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;width:100%;margin:.5rem 0 2rem;display:block;overflow-x:auto}
th,td{text-align:left;padding:.3rem .8rem .3rem 0;border-bottom:1px solid #8884;vertical-align:top}
td.n{font-variant-numeric:tabular-nums}
.ok{color:#18794e}.bad{color:#c62a2f}
@media(prefers-color-scheme:dark){.ok{color:#4cc38a}.bad{color:#ff8589}}
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_PAGE_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; frame-ancestors 'none'"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The daemon as its pages see it; every callable may be called from any thread."""

    metrics: Callable[[], bytes]
    healthy: Callable[[], bool]
    """Whether the main loop turns."""
    unready: Callable[[], str | None]
    """Why intake does not work, or None."""
    jobs: Callable[[], Sequence[Row]]
    models: Callable[[], Sequence[Row]]
    published: Path
    status_page: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)


def answer(view: View, path: str) -> Answer:
    """The answer to a GET of ``path`` (without its query)."""
    route = _ROUTES.get(path)
    if route is not None:
        return route(view)
    if path.startswith("/models/") and path.endswith("/report"):
        return _report(view.published, path.removeprefix("/models/").removesuffix("/report"))
    return _text(404, "there is no such page")


def _metrics(view: View) -> Answer:
    return Answer(status=200, body=view.metrics(), content_type=CONTENT_TYPE)


def _health(view: View) -> Answer:
    return _text(200, "ok") if view.healthy() else _text(503, "the main loop does not turn")


def _readiness(view: View) -> Answer:
    reason = view.unready()
    return _text(200, "ready") if reason is None else _text(503, reason)


def _text(status: int, text: str) -> Answer:
    return Answer(status=status, body=f"{text}\n".encode("utf-8", "replace"))


def _json(value: object) -> Answer:
    return Answer(status=200, body=json.dumps(value, allow_nan=False).encode(), content_type="application/json")


def _report(published: Path, name: str) -> Answer:
    if not shelf.is_name(name):
        return _text(404, "there is no such model")
    try:
        with (published / name / CURRENT_LINK / REPORT_FILE).open("rb") as file:
            body = file.read(_REPORT_BYTES)
    except OSError:
        return _text(404, "there is no report of this model")
    headers = {"Content-Security-Policy": _REPORT_POLICY}
    return Answer(status=200, body=body, content_type="text/html; charset=utf-8", headers=headers)


def _status_page(view: View) -> Answer:
    if not view.status_page:
        return _text(404, "the status page is switched off")
    reason = view.unready()
    state = '<p class="ok">Ready.</p>' if reason is None else f'<p class="bad">Not ready: {escape(reason)}</p>'
    body = (
        "<!doctype html><html lang=en><head><meta charset=utf-8><title>edgeopt</title>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>edgeopt</h1>{state}"
        f"<h2>Models</h2>{_models(view.models())}<h2>Jobs</h2>{_jobs(view.jobs()[:50])}"
        '<p><a href="/metrics">metrics</a> · <a href="/api/v1/jobs">jobs</a> · <a href="/api/v1/models">models</a></p>'
        "</body></html>"
    )
    headers = {"Content-Security-Policy": _PAGE_POLICY}
    return Answer(
        status=200, body=body.encode("utf-8", "replace"), content_type="text/html; charset=utf-8", headers=headers
    )


def _models(models: Sequence[Row]) -> str:
    if not models:
        return "<p>Nothing is published yet. Drop a model into the inbox.</p>"
    rows = [
        [
            f'<a href="/models/{escape(str(model["name"]))}/report">{escape(str(model["name"]))}</a>',
            escape(f"{model['version']}{' (pinned)' if model['pinned'] else ''}"),
            _number(model.get("speedup"), "x"),
            _number(model.get("bytes_ratio"), "x smaller"),
            escape(f"{model.get('quality_kind') or ''}"),
        ]
        for model in models
    ]
    return _table(["Model", "Version", "Faster", "Size", "Quality evidence"], rows)


def _jobs(jobs: Sequence[Row]) -> str:
    if not jobs:
        return "<p>No jobs yet.</p>"
    rows = [
        [
            escape(str(job["name"])),
            escape(str(job["state"])),
            _progress(job),
            escape(str(job["message"] or "")),
            _moment(job["updated"]),
        ]
        for job in jobs
    ]
    return _table(["Model", "State", "Stage", "Reason", "Since (UTC)"], rows)


def _progress(job: Row) -> str:
    ratio = job.get("progress")
    percent = f" {ratio:.0%}" if isinstance(ratio, float) else ""
    return escape(f"{job['stage'] or ''}{percent}")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """``rows`` holds HTML that is escaped already."""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    lines = "".join("<tr>" + "".join(f'<td class="n">{cell}</td>' for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table>"


def _number(value: object, unit: str) -> str:
    return f"{value:.2f}{unit}" if isinstance(value, float | int) and not isinstance(value, bool) else ""


def _moment(value: object) -> str:
    if not isinstance(value, float):
        return ""
    return datetime.fromtimestamp(value, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")


_ROUTES: Mapping[str, Callable[[View], Answer]] = {
    "/": _status_page,
    "/metrics": _metrics,
    "/healthz": _health,
    "/readyz": _readiness,
    "/api/v1/jobs": lambda view: _json({"jobs": list(view.jobs())}),
    "/api/v1/models": lambda view: _json({"models": list(view.models())}),
}
