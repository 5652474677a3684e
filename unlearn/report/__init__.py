"""One self-contained HTML page from the results of a run; results are read here, nothing is computed."""

from unlearn.report.assemble import assemble_report
from unlearn.report.frontier import render_frontier
from unlearn.report.pictures import picture
from unlearn.report.rendering import render_report
from unlearn.report.shown_rows import listed_rows

__all__ = ["assemble_report", "listed_rows", "picture", "render_frontier", "render_report"]
