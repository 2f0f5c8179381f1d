"""Types of the files that a comparison writes: cell.json, result.json and comparison.json."""
