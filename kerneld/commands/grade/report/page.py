"""One page of HTML for each team, and an index. No script, no file beside it: it can be sent as it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from kerneld.commands.grade.checklist import Checklist
from kerneld.commands.grade.model import Finding, Outcome, Result
from kerneld.commands.grade.report.score import score
from kerneld.commands.grade.rows import BY_NAME

_STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 small { font-weight: normal; color: #555; }
details { border-left: .35rem solid #2a7d3f; margin: .4rem 0; padding: .2rem .8rem; background: #f6f8f6; }
details.failed { border-color: #b3261e; background: #fbf3f2; }
details.skipped { border-color: #8a6d00; background: #faf7ec; }
summary { cursor: pointer; }
summary b { display: inline-block; min-width: 5rem; }
dt { font-weight: 600; } dd { margin: 0 0 .4rem 1rem; overflow-wrap: anywhere; }
pre { background: #f2f2f2; padding: .8rem; overflow: auto; max-height: 30rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem; text-align: left; border-bottom: 1px solid #ddd; }
"""
_WORDS = {Outcome.PASSED: "right", Outcome.FAILED: "not right", Outcome.SKIPPED: "not graded"}


def pages(results: Sequence[Result], checklist: Checklist) -> dict[str, str]:
    """Return the pages by their file names: one for each team, and index.html."""
    written = {file_name(result.team): team_page(result, checklist) for result in results}
    written["index.html"] = index_page(results, checklist)
    return written


def file_name(team: str) -> str:
    """Return the file name of a team's page."""
    return f"team-{re.sub(r'[^A-Za-z0-9._-]', '_', team)}.html"


def team_page(result: Result, checklist: Checklist) -> str:
    """Return the page of one team."""
    won, most = score(result, checklist)
    rows = "\n".join(_row(finding, checklist) for finding in result.findings)
    walls = ", ".join(result.walls) or "no walls: this host allows none"
    body = f"""<h1>{escape(result.team)} <small>{won:g} of {most:g} points</small></h1>
{rows}
<h2>What the programs printed</h2>
<pre>{escape(result.output) or "nothing"}</pre>
<p>Graded in {result.seconds:.0f} s. The programs had {escape(walls)}.</p>"""
    return _page(f"{result.team}: {won:g} of {most:g}", body)


def _row(finding: Finding, checklist: Checklist) -> str:
    row = BY_NAME[finding.row]
    points = checklist.points.get(finding.row, row.points)
    won = points if finding.outcome is Outcome.PASSED else 0
    parts = [("expected", escape(row.expected)), ("seen", escape(finding.seen))]
    if finding.outcome is Outcome.FAILED:
        parts.append(("usual mistake", escape(row.mistake)))
    if finding.again:
        parts.append(("see it again", f"<code>{escape(finding.again)}</code>"))
    facts = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in parts)
    opened = " open" if finding.outcome is not Outcome.PASSED else ""
    return (
        f'<details class="{finding.outcome}" id="{finding.row}"{opened}><summary><b>{won:g} of {points:g}</b> '
        f"{escape(row.title)}: {_WORDS[finding.outcome]}</summary><dl>{facts}</dl></details>"
    )


def index_page(results: Sequence[Result], checklist: Checklist) -> str:
    """Return the list of all teams."""
    lines = []
    for result in results:
        won, most = score(result, checklist)
        lost = ", ".join(finding.row for finding in result.findings if finding.outcome is not Outcome.PASSED)
        link = f'<a href="{file_name(result.team)}">{escape(result.team)}</a>'
        lines.append(f"<tr><td>{link}</td><td>{won:g} of {most:g}</td><td>{escape(lost)}</td></tr>")
    head = "<tr><th>team</th><th>points</th><th>rows lost</th></tr>"
    title = checklist.course or "kerneld grade"
    return _page(title, f"<h1>{escape(title)}</h1><table>{head}\n{chr(10).join(lines)}</table>")


def _page(title: str, body: str) -> str:
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )
