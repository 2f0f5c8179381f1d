"""Views of the features themselves as sections: what sources, prompts and fusions see, and what answers look at."""
