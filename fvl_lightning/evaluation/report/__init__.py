"""The report of an evaluation: Markdown, one HTML file, figures and JSON."""
