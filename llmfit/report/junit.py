"""A report as JUnit XML, which CI systems show: a suite a comparison, a case a row."""

from __future__ import annotations

from xml.etree import ElementTree

from llmfit.records import Comparison, RunRecord
from llmfit.report._text import visible
from llmfit.report.night import not_done
from llmfit.report.regressions import cell_line, grouped, metric_name
from llmfit.trend_records import Regression, Report


def render_junit(report: Report) -> str:
    """The XML text. A regression is a failure of its row; a row that cannot run here is skipped.

    A comparison of the night that was not done is a case with an error in a suite of its own.
    """
    root = ElementTree.Element("testsuites", name=_xml(report.title))
    for comparison in report.comparisons:
        _suite(root, comparison, report.regressions)
    if missing := not_done(report):
        suite = ElementTree.SubElement(root, "testsuite", name="not measured")
        for cell in missing:
            case = ElementTree.SubElement(suite, "testcase", name=_xml(cell.name))
            ElementTree.SubElement(case, "error", message=_xml(cell_line(cell)))
    for suite in root:
        for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            suite.set(name, str(len(suite.findall(f"testcase/{tag}"))))
        suite.set("tests", str(len(suite)))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, "unicode") + "\n"


def _suite(
    root: ElementTree.Element, comparison: Comparison, regressions: tuple[Regression, ...]
) -> None:
    name = comparison.model.name
    suite = ElementTree.SubElement(root, "testsuite", name=_xml(f"{name} {comparison.run_id}"))
    for row in comparison.rows:
        case = ElementTree.SubElement(suite, "testcase", classname=_xml(name), name=_xml(row.label))
        if row.total_s is not None:
            case.set("time", f"{row.total_s:.3f}")
        own = [
            r
            for r in regressions
            if (r.key.model, r.key.backend) == (name, row.backend)
            and r.newest_run in (None, comparison.run_id)
        ]
        if own:
            message = "; ".join(metric_name(each.key.metric) for each in own)
            failure = ElementTree.SubElement(case, "failure", message=_xml(message))
            told = [line for group in grouped(own) for line in (group.head, *group.lines)]
            failure.text = _xml("\n".join(told), keep="\n")
        elif row.status == "failed":
            ElementTree.SubElement(case, "failure", message=_xml(row.reason or row.status))
        elif row.status != "ok":
            ElementTree.SubElement(case, "skipped", message=_xml(_why(row)))


def _why(row: RunRecord) -> str:
    return f"{row.status}: {row.reason or 'no reason recorded'}"


def _xml(text: str, *, keep: str = "") -> str:
    """Text without what XML cannot hold; ElementTree escapes the rest."""
    return visible(text, keep=keep)
