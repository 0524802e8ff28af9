"""The report of a judgement: one page in words, tables and plots."""
