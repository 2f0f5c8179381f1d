"""Do cheap measures of a source's worth agree with trainings on subsets of the sources?"""
