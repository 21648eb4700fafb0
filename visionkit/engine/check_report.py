"""What `visionkit check` found: `CheckReport`, its text for the screen and its content for JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from visionkit.data.checks.findings import DONE, Finding, findings_of
from visionkit.data.checks.kinds import title
from visionkit.data.checks.summary import data_summary, summary_lines
from visionkit.errors import ResourceError, VisionkitError, plural, printable

VERSION = 1  # of the JSON file
SHOWN = 20  # findings on the screen
ALIKE = 3  # warnings and notes of one kind on the screen
SEVERITIES = ("error", "warning", "note")


@dataclass(repr=False)
class CheckReport:
    """What `check` returns; printed, it is the text of the command.

    target: the checked file, or `config`.
    findings: all, each a `visionkit.data.checks.findings.Finding` with `kind`, `severity`,
        `message` and its place. No error among them: training can start.
    used: the data that training would use, as in data.json of a run.
    """

    target: str
    findings: list[Finding] = field(default_factory=list)
    used: dict[str, Any] = field(default_factory=lambda: data_summary((), ()))

    @property
    def errors(self) -> list[Finding]:
        """The findings that would end training."""
        return [found for found in self.findings if found.severity == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """The findings that training would report and continue."""
        return [found for found in self.findings if found.severity == "warning"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, those of `visionkit check --json`."""
        counts = self._severities()
        return {
            "version": VERSION,
            "file": self.target,
            "counts": {
                **{f"{severity}s": counts[severity] for severity in SEVERITIES},
                "kinds": dict(sorted(Counter(found.kind for found in self.findings).items())),
            },
            "data": self.used,
            "findings": [found.record() for found in self._ordered()],
        }

    def text(self, elsewhere: str = ".findings has all") -> str:
        """The report on the screen: counts by kind, some findings of each, and the data used.
        `elsewhere` says where all findings are."""
        findings, counts = self._ordered(), self._severities()
        summary = ", ".join(plural(counts[severity], severity) for severity in SEVERITIES)
        text = [f"{printable(self.target)}: {summary}"]
        kinds = Counter((found.severity, found.kind, found.action) for found in findings)
        if len(findings) > len(kinds):
            for (severity, kind, action), count in kinds.items():
                done = f", {DONE[action]}" if action in DONE else ""
                text.append(f"  {count} x {kind} ({severity}{done}): {title(kind)}")
            text.append("")
        shown = _selected(findings)
        text += [f"  {found.severity} {found.kind}: {self._located(found)}" for found in shown]
        if len(findings) > len(shown):
            text.append(f"  ... and {len(findings) - len(shown)} more; {elsewhere}")
        text += [printable(f"data used: {line}") for line in summary_lines(self.used)]
        return "\n".join(text)

    def __repr__(self) -> str:
        return self.text()

    @contextmanager
    def catching(self, where: str = "") -> Iterator[None]:
        """A VisionkitError becomes findings, and the check continues after the block."""
        try:
            yield
        except ResourceError:  # a shortage is not a finding about the data
            raise
        except VisionkitError as error:
            self.add(error, where)

    def add(self, error: VisionkitError, where: str = "") -> None:
        """Add the findings of an error, and the warnings and notes of the same check."""
        others = getattr(error, "others", [])
        found = located(where, [*findings_of(error), *others])
        self.findings += [one for one in found if one not in self.findings]

    def _located(self, found: Finding) -> str:
        """The finding with its file, unless that is the checked one."""
        alone = found.file in ("", self.target)
        return str(found) if alone else f"{printable(found.file)}: {found}"

    def _ordered(self) -> list[Finding]:
        """Errors, warnings, notes; each in the order of the data."""
        return sorted(self.findings, key=lambda found: SEVERITIES.index(found.severity))

    def _severities(self) -> Counter[str]:
        return Counter(found.severity for found in self.findings)


def located(where: str, findings: Iterable[Finding]) -> list[Finding]:
    """The findings, those without a file with `where` instead."""
    return [found if found.file else found._replace(file=where) for found in findings]


def _selected(findings: list[Finding]) -> list[Finding]:
    """At most `SHOWN` findings in their order: errors first, then the first of each kind, the
    second and the third, so that many of one kind do not hide a rare one."""
    seen: Counter[str] = Counter()
    ranked = []
    for index, found in enumerate(findings):
        is_error, number = found.severity == "error", seen[found.kind]
        seen[found.kind] += 1
        if is_error or number < ALIKE:
            ranked.append((not is_error, number, SEVERITIES.index(found.severity), index))
    return [findings[index] for index in sorted(index for *_, index in sorted(ranked)[:SHOWN])]
