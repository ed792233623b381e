"""How the demo's page looks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import gradio

CSS = """
.shares { display: flex; flex-wrap: wrap; gap: 2em; color: var(--body-text-color); }
.shares table { flex: 1 1 260px; border-collapse: collapse; margin: 0; }
.shares caption { text-align: left; font-weight: 600; padding: 4px 6px; }
/* Gradio's own rules for tables are narrower. */
.shares :is(table, tr, td) { border: 0 !important; }
.shares td { padding: 2px 6px; white-space: nowrap; }
.shares td.bar { width: 60%; }
.shares td.bar span { display: block; height: 0.8em; min-width: 1px; border-radius: 2px; }
.shares td.number { text-align: right; font-variant-numeric: tabular-nums; }
.shares .swatch { display: inline-block; width: 0.9em; height: 0.9em; margin-right: 0.5em; }
.shares .swatch { border-radius: 2px; }
.shares span { outline: 1px solid var(--border-color-primary); }
"""


def theme() -> gradio.themes.Default:
    """Gradio's own looks in the system's fonts, so that none is fetched."""
    import gradio as gr

    return gr.themes.Default(
        font=['system-ui', 'sans-serif'], font_mono=['ui-monospace', 'monospace'], spacing_size='sm'
    )
