"""Where the rows of a comparison run: on this machine, one after the other, or on a fleet."""
