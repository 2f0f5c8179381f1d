"""The report of a comparison: Markdown, JSON, tables and figures."""
