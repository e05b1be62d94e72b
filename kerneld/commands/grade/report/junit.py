"""The results as JUnit's XML: a suite for each submission, a case for each row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from kerneld.commands.grade.checklist import Checklist
from kerneld.commands.grade.model import Outcome, Result
from kerneld.commands.grade.report.score import score
from kerneld.commands.grade.rows import BY_NAME

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_text(results: Sequence[Result], checklist: Checklist) -> str:
    """Return the XML."""
    suites = ElementTree.Element("testsuites", name="kerneld grade")
    for result in results:
        count = {outcome: sum(1 for one in result.findings if one.outcome is outcome) for outcome in Outcome}
        suite = ElementTree.SubElement(
            suites, "testsuite", name=_clean(result.team), tests=str(len(result.findings)), errors="0",
            failures=str(count[Outcome.FAILED]), skipped=str(count[Outcome.SKIPPED]), time=f"{result.seconds:.1f}",
        )  # fmt: skip
        won, most = score(result, checklist)
        properties = ElementTree.SubElement(suite, "properties")
        for name, value in (("points", won), ("points possible", most)):
            ElementTree.SubElement(properties, "property", name=name, value=f"{value:g}")
        for finding in result.findings:
            row = BY_NAME[finding.row]
            case = ElementTree.SubElement(suite, "testcase", classname=_clean(result.team), name=finding.row)
            if finding.outcome is Outcome.FAILED:
                failure = ElementTree.SubElement(case, "failure", message=_clean(finding.seen))
                failure.text = _clean(f"{row.title}\nexpected: {row.expected}\nseen: {finding.seen}\n{finding.again}\n")
            elif finding.outcome is Outcome.SKIPPED:
                ElementTree.SubElement(case, "skipped", message=_clean(finding.seen))
        ElementTree.SubElement(suite, "system-out").text = _clean(result.output)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, "unicode", xml_declaration=True) + "\n"


def _clean(text: str) -> str:
    """Return a text without the characters that XML 1.0 cannot have: a program may print any."""
    return _NOT_XML.sub("\ufffd", text)
