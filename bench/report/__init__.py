"""Reports of records: tables, plots, pages, comparisons, the README."""
