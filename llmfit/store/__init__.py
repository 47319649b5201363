"""The results store: every run in a database, to which is only ever added."""
