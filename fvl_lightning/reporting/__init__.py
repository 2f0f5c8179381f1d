"""Parts that every report shares: style of figures, tables, one HTML file."""
