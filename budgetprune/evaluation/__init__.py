"""Evaluation: records of what a method keeps and what it costs, and the report drawn from them."""

from .frontier import area_under_curve, pareto_front, shared_range
from .record import Record, append, cell_key, environment, latest, read, wilson_interval
from .report import write_chart_svg, write_plan_svg, write_report
from .report_table import markdown_table
from .scaling_points import scaling_points

__all__ = ["Record", "append", "area_under_curve", "cell_key", "environment", "latest", "markdown_table",
           "pareto_front", "read", "scaling_points", "shared_range", "wilson_interval", "write_chart_svg",
           "write_plan_svg", "write_report"]
