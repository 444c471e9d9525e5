"""A run folder's results as a table, a sentence, pictures and one Markdown report. No torch."""
