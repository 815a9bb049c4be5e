"""How every plot looks: one template, one palette for colour-blind readers too, and the way into
the page.
"""

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup
from plotly.subplots import make_subplots

ACCENT = "#0072B2"
GREY = "#8a8f98"
INK = "#24292f"
# Okabe and Ito's palette without its yellow, which is too faint on white.
PALETTE = (ACCENT, "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("solid", "dash", "dot", "dashdot")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
PANEL = 240  # height of one panel, pixels
GAP = (
    76  # between rows of panels: the tick labels, the axis title and the next panel's title, pixels
)
LEGEND = 26  # a line of legend, pixels

_AXIS = {
    "showgrid": True,
    "gridcolor": "#eaecef",
    "linecolor": "#c4c9d0",
    "showline": True,
    "zeroline": False,
    "ticks": "outside",
    "ticklen": 4,
    "tickcolor": "#c4c9d0",
    "automargin": True,
    "title": {"standoff": 8, "font": {"size": 13}},
}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": 13, "color": INK},
        "colorway": list(PALETTE),
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "hoverlabel": {"font": {"family": FONT}, "align": "left"},
        # In the container's own units the legend stays above the panels at every width.
        "legend": {
            "orientation": "h",
            "yref": "container",
            "y": 1,
            "yanchor": "top",
            "x": 0,
            "xanchor": "left",
        },
    }
)


def colour(index: int) -> str:
    """The palette, from its beginning again where it ends."""
    return PALETTE[index % len(PALETTE)]


def dash(index: int) -> str:
    """Lines that share a colour differ in their dashes."""
    return DASHES[index // len(PALETTE) % len(DASHES)]


def faint(hex_colour: str, alpha: float) -> str:
    """The colour, translucent."""
    red, green, blue = (int(hex_colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def literal(text: Any) -> str:
    """Plotly reads a little HTML in its texts; this shows what was written."""
    return escape(str(text), quote=False)


def panels(
    titles: Sequence[str], *, columns: int = 3, legend: int = 0, height: int = PANEL
) -> go.Figure:
    """An empty figure of panels side by side, their titles above them, below so many lines of
    legend.
    """
    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    top, bottom = 38 + LEGEND * legend, 56
    inner = rows * height + (rows - 1) * GAP
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=[literal(title) for title in titles],
        vertical_spacing=GAP / inner if rows > 1 else 0,
        horizontal_spacing=0.07 if columns > 1 else 0,
    )
    figure.update_annotations(font_size=13, xanchor="center")
    figure.update_layout(
        template=TEMPLATE,
        height=inner + top + bottom,
        margin={"l": 60, "r": 16, "t": top, "b": bottom},
        showlegend=legend > 0,
    )
    return figure


def place(index: int, count: int, columns: int = 3) -> dict[str, int]:
    """Row and column of panel `index`, as plotly takes them."""
    columns = min(columns, count)
    return {"row": index // columns + 1, "col": index % columns + 1}


def whole(last: int) -> dict[str, Any]:
    """An axis of whole numbers up to `last`; left alone, plotly puts half ones between the first
    few.
    """
    return {"tickformat": "d", **({"dtick": 1} if last <= 12 else {})}


def to_html(figure: go.Figure | None, name: str) -> Markup | None:
    """The figure as a part of the page, which holds plotly.js itself."""
    if figure is None:
        return None
    # Dragging zooms and a double click goes back; of plotly's buttons only the one that saves a
    # picture is kept, since others reach for the network.
    config = {"displaylogo": False, "responsive": True, "modeBarButtons": [["toImage"]]}
    return Markup(
        figure.to_html(
            full_html=False, include_plotlyjs=False, config=config, div_id=f"plot-{name}"
        )
    )
