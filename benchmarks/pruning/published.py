"""The tables of docs/results.md: which candidates each one holds and how it is laid out, so that one command makes and prints them again.

A table is pivoted: a row is one choice of units (a share and a criterion), a column one number of one way to recover. ``samples`` is how many unlabelled samples the published one was made with; those beyond
the corpus' own come from ``benchmarks/samples.py``, whose corpus begins with the same ones, so that it serves for all tables. Where a corpus has fewer, the printed title says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .peer import CRITERIA as PEER
from .questions import DEMO, Question

LARGEST = 8
"""Channels were left in eights in all of them, whatever the device."""
OBS, RANDOM, PEER_L2 = "obs", "random", next(iter(PEER))
_ACTIVATIONS = ("apoz", "entropy")
_WEIGHTS = ("l1", "l2")
_SHARES = (0.1, 0.2, 0.3, 0.5)


@dataclass(frozen=True, kw_only=True)
class Column:
    """One number of one way to recover; an empty ``method`` takes it from whichever was made, since it is the same for all."""

    title: str
    number: str
    form: str
    method: str = ""
    steps: int = 0


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The same criteria at each of these shares; ``ways`` are the methods and steps that are made of them."""

    ratios: Sequence[float]
    criteria: Sequence[str]
    ways: Sequence[tuple[str, int]]
    scopes: Sequence[str] = ("local",)


@dataclass(frozen=True, kw_only=True)
class Published:
    """One table: its model and samples, its rows, its columns."""

    model: str
    samples: int
    rows: Sequence[Rows]
    columns: Sequence[Column]

    def questions(self, available: int) -> Iterator[Question]:
        """What the table asks, the cheap ones of all rows first."""
        for is_cheap in (True, False):
            for rows in self.rows:
                for question in self._of(rows, available):
                    if (question.steps == 0) is is_cheap:
                        yield question

    def _of(self, rows: Rows, available: int) -> Iterator[Question]:
        for ratio in rows.ratios:
            for criterion in rows.criteria:
                for scope in rows.scopes:
                    for method, steps in rows.ways:
                        yield Question(
                            model=self.model, ratio=ratio, criterion=criterion, method=method, families="inner",
                            samples=min(self.samples, available), largest=LARGEST, scope=scope, steps=steps,
                        )  # fmt: skip


def _columns(number: str, form: str, *titled: tuple[str, tuple[str, int]]) -> tuple[Column, ...]:
    return tuple(
        Column(title=title, number=number, form=form, method=method, steps=steps) for title, (method, steps) in titled
    )


_SMALLER = Column(title="multiply-adds", number="multiply_adds", form=".2f")
_BYTES = Column(title="bytes", number="bytes", form=".2f")
_CHEAP = (("removed", 0), ("refitted", 0))
_REMOVED, _REFITTED = _CHEAP


def _taught(steps: int) -> tuple[tuple[str, int], ...]:
    return (_REMOVED, ("refitted apart", 0), ("distilled apart", steps))


def _latency(method: str) -> Column:
    return Column(title="latency", number="latency", form=".2f", method=method)


def _cheap_table(model: str, samples: int) -> Published:
    """Models that are no classifiers: cosine and noise of all criteria, and no teaching."""
    columns = (
        _SMALLER,
        *_columns("cosine", ".4f", ("cosine removed", _REMOVED), ("cosine refitted", _REFITTED)),
        *_columns("nsr", ".3f", ("noise/signal removed", _REMOVED)),
        *_columns("nsr", ".4f", ("noise/signal refitted", _REFITTED)),
        _BYTES,
        _latency("refitted"),
    )
    criteria = (OBS, *_ACTIVATIONS, *_WEIGHTS, "taylor", "variance", PEER_L2, RANDOM)
    rows = Rows(ratios=_SHARES, criteria=criteria, ways=_CHEAP)
    return Published(model=model, samples=samples, rows=(rows,), columns=columns)


def _taught_table(model: str, samples: int, steps: int, rows: Sequence[tuple[float, Sequence[str]]]) -> Published:
    """The same, refitted apart and taught; ``rows`` are the criteria that there was time for at each share."""
    removed, *others = _taught(steps)
    rest = tuple(zip(("refitted", "distilled"), others, strict=True))
    columns = (
        _SMALLER,
        *_columns("cosine", ".4f", ("cosine removed", removed), *rest),
        *_columns("nsr", ".4f", ("noise/signal removed", removed), *rest),
        _BYTES,
        _latency("refitted apart"),
    )
    asked = tuple(Rows(ratios=(ratio,), criteria=criteria, ways=_taught(steps)) for ratio, criteria in rows)
    return Published(model=model, samples=samples, rows=asked, columns=columns)


def _digits() -> Published:
    taught, apart = ("distilled", 400), ("distilled apart", 400)
    both = tuple(PEER)
    everything = (OBS, *_ACTIVATIONS, "batch_norm", "group_l2", *_WEIGHTS, "taylor", "variance", *both, RANDOM)
    columns = (
        _SMALLER,
        *_columns("divergence", ".3f", ("KL removed", _REMOVED)),
        *_columns("divergence", ".4f", ("KL refitted", _REFITTED), ("KL distilled, 400 steps", taught)),
        *_columns("divergence", ".4f", ("the same, refit apart", apart)),
        *_columns("accuracy", ".4f", ("accuracy removed", _REMOVED), ("accuracy refitted", _REFITTED)),
        *_columns("accuracy", ".4f", ("accuracy distilled", taught)),
    )
    rows = (
        Rows(ratios=_SHARES, criteria=everything, ways=_CHEAP),
        Rows(ratios=_SHARES, criteria=(OBS, PEER_L2, RANDOM), ways=(taught, apart)),
    )
    return Published(model=DEMO, samples=180, rows=rows, columns=columns)


def _digits_steps() -> Published:
    ways = [("distilled", steps) for steps in (25, 50, 100, 200, 400, 800, 1600)]
    columns = _columns("divergence", ".4f", *((f"KL, {steps} steps", (method, steps)) for method, steps in ways))
    return Published(model=DEMO, samples=180, rows=(Rows(ratios=(0.5,), criteria=(OBS,), ways=ways),), columns=columns)


def _efficientnet() -> Published:
    removed, refitted, distilled = ways = _taught(100)
    three = (("refitted", refitted), ("distilled", distilled))
    criteria = (OBS, *_ACTIVATIONS, "group_l2", *_WEIGHTS, "taylor", "variance", PEER_L2, RANDOM)
    columns = (
        _SMALLER,
        *_columns("divergence", ".3f", ("KL removed", removed), ("KL refitted", refitted), ("KL distilled", distilled)),
        *_columns("drop", ".3f", ("expected drop removed", removed), *three),
        *_columns("agreement", ".3f", ("agreement removed", removed), *three),
        *_columns("accuracy", ".3f", ("accuracy refitted", refitted), ("distilled", distilled)),
        _BYTES,
        _latency("refitted apart"),
    )
    rows = Rows(ratios=_SHARES, criteria=criteria, ways=ways)
    return Published(model="efficientnet_lite0", samples=500, rows=(rows,), columns=columns)


def _scopes() -> Published:
    both = (("removed", _REMOVED), ("refitted", _REFITTED))
    columns = (
        _SMALLER,
        *_columns("divergence", ".3f", *((f"KL {title}", way) for title, way in both)),
        *_columns("drop", ".3f", *((f"expected drop {title}", way) for title, way in both)),
        *_columns("agreement", ".3f", *((f"agreement {title}", way) for title, way in both)),
        _BYTES,
    )
    rows = (
        Rows(ratios=(0.1,), criteria=(OBS,), ways=_CHEAP, scopes=("global",)),
        Rows(ratios=(0.1,), criteria=("l2",), ways=_CHEAP, scopes=("local", "global", "kind")),
    )
    return Published(model="efficientnet_lite0", samples=128, rows=rows, columns=columns)


_MOST = (OBS, *_ACTIVATIONS, "group_l2", *_WEIGHTS, "taylor", "variance", PEER_L2, RANDOM)
_FEW = (OBS, "taylor", PEER_L2, RANDOM)
TABLES = {
    "digits": _digits(),
    "digits-steps": _digits_steps(),
    "efficientnet": _efficientnet(),
    "efficientnet-scopes": _scopes(),
    "minilm": _cheap_table("all_minilm_l6_v2", 128),
    "minilm-taught": _taught_table("all_minilm_l6_v2", 500, 50, ((0.1, _MOST), (0.2, (OBS,)), (0.3, _FEW))),
    "ppocr": _cheap_table("ppocr_v4_det", 50),
    "ppocr-taught": _taught_table("ppocr_v4_det", 200, 100, ((0.1, _FEW),)),
    "ddddocr": _cheap_table("ddddocr_det", 64),
    "ddddocr-taught": _taught_table("ddddocr_det", 500, 100, ((0.1, (OBS,)), (0.2, (OBS,)))),
}
