"""The deploy formats, one file each. ``registry`` finds them by id."""
