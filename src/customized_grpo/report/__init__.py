"""The report: from the rows of runs to one self-contained HTML page."""
