"""All figures, as functions from the report's dataclasses to Plotly figures: for the pages and for the dashboard."""
