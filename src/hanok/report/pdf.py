"""A report as PDF (A4, landscape), by fpdf2: the same sections as the HTML."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path

import matplotlib as mpl
from fpdf import FPDF
from fpdf.enums import Align, TableBordersLayout, VAlign, XPos, YPos
from fpdf.fonts import FontFace

from hanok.report.content import Report, Section, Table, Tile
from hanok.report.figures import Drawing

FONT = "DejaVu"
INK, SOFT, ACCENT, LINE = (31, 41, 55), (107, 114, 128), (15, 118, 110), (229, 231, 235)
MARGIN = 14.0
MOST_ROWS = 1_000
"""Of a table: 25 ms each; all of them are in the HTML and in plan.json."""
BREAK = 14.0


class _Document(FPDF):
    """A4 landscape with page numbers, in the font that comes with matplotlib."""

    def __init__(self) -> None:
        super().__init__(orientation="landscape", format="A4")
        fonts = Path(mpl.get_data_path()) / "fonts" / "ttf"
        self.add_font(FONT, "", fonts / "DejaVuSans.ttf")
        self.add_font(FONT, "B", fonts / "DejaVuSans-Bold.ttf")
        self.set_margins(MARGIN, MARGIN)
        self.set_auto_page_break(True, BREAK)
        self.set_draw_color(*LINE)

    def footer(self) -> None:
        """Write the number of the page."""
        self.set_y(-10)
        self.set_font(FONT, "", 7)
        self.set_text_color(*SOFT)
        self.cell(0, 5, str(self.page_no()), align=Align.R)

    def text_block(self, text: str, size: float, *, bold: bool = False, soft: bool = False) -> None:
        """Write a paragraph over the whole width."""
        self.set_font(FONT, "B" if bold else "", size)
        self.set_text_color(*(SOFT if soft else INK))
        self.multi_cell(0, size * 0.5, text, new_x=XPos.LMARGIN, new_y=YPos.NEXT)


def to_pdf(report: Report) -> bytes:
    """Return ``report`` as a PDF file."""
    pdf = _Document()
    pdf.set_title(report.title)
    # The same plan gives the same file: its time is not that of writing it.
    pdf.set_creation_date(datetime(2000, 1, 1, tzinfo=UTC))
    pdf.add_page()
    pdf.text_block(report.title, 20, bold=True)
    pdf.text_block(report.subtitle, 9, soft=True)
    pdf.ln(3)
    _tiles(pdf, report.tiles)
    for section in report.sections:
        _section(pdf, section)
    return bytes(pdf.output())


def _tiles(pdf: _Document, tiles: tuple[Tile, ...]) -> None:
    gap = 3.0
    width = (pdf.epw - gap * (len(tiles) - 1)) / len(tiles)
    top = pdf.get_y()
    for number, tile in enumerate(tiles):
        left = MARGIN + number * (width + gap)
        pdf.rect(left, top, width, 20, round_corners=True, corner_radius=1.5)
        for text, down, size, style, colour in (
            (tile.label, 2, 8, "", SOFT),
            (tile.value, 7, 13, "B", ACCENT),
            (tile.note, 14, 7, "", SOFT),
        ):
            pdf.set_xy(left + 3, top + down)
            pdf.set_font(FONT, style, size)
            pdf.set_text_color(*colour)
            pdf.cell(width - 6, 5, text)
    pdf.set_xy(MARGIN, top + 24)


def _section(pdf: _Document, section: Section) -> None:
    first = _height(pdf, section.figures[0]) + 24 if section.figures else 40.0
    if pdf.get_y() > MARGIN + 60 and pdf.will_page_break(first):
        pdf.add_page()
    pdf.ln(3)
    pdf.text_block(section.title, 13, bold=True)
    pdf.ln(1)
    for text in section.text:
        pdf.text_block(text, 8.5)
        pdf.ln(1)
    for point in section.points:
        pdf.text_block(f"•  {point}", 8.5)
        pdf.ln(0.5)
    for figure in section.figures:
        _figure(pdf, figure)
    if section.table is not None:
        _table(pdf, section.table)


def _figure(pdf: _Document, figure: Drawing) -> None:
    height = _height(pdf, figure)
    if pdf.will_page_break(height):
        pdf.add_page()
    pdf.image(io.BytesIO(figure.png()), x=MARGIN, h=height, alt_text=figure.alt)
    pdf.ln(2)


def _height(pdf: _Document, figure: Drawing) -> float:
    """Return the height of a figure as wide as the page, or as high as it."""
    return min(pdf.epw * figure.ratio, pdf.eph - 12)


def _table(pdf: _Document, table: Table) -> None:
    pdf.set_font(FONT, "", 7)
    pdf.set_text_color(*INK)
    head, first = FontFace(emphasis="BOLD", color=SOFT), FontFace(emphasis="BOLD")
    aligns = [Align.R if n in table.right else Align.L for n in range(len(table.titles))]
    with pdf.table(
        col_widths=table.widths or None,
        text_align=tuple(aligns),
        headings_style=head,
        borders_layout=TableBordersLayout.HORIZONTAL_LINES,
        line_height=3.6,
        padding=(0.6, 1.4),
        v_align=VAlign.T,
    ) as drawn:
        for row in (table.titles, *table.rows[:MOST_ROWS]):
            cells = drawn.row()
            for number, cell in enumerate(row):
                cells.cell(cell, style=first if number == 0 and row is not table.titles else None)
    if len(table.rows) > MOST_ROWS:
        pdf.text_block(f"{len(table.rows) - MOST_ROWS} more are in report.html.", 8.5)
    pdf.ln(2)
