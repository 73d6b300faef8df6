"""The report of a plan: its content once, then as HTML that needs no network, and as PDF.

Needs the extra ``plan`` (jinja2, matplotlib, fpdf2); imported only when a report is written.
"""
