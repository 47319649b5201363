"""A night's measuring: settings ─► comparisons one by one ─► what became worse ─► report."""
