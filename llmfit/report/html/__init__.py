"""One HTML file that opens offline: tables, plots, and how to make its figures again."""
