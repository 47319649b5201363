"""Which row to take and why: bounds and an objective, the choice, the words for it.

constraints ─► candidate ─► policy, pareto ─► changes ─► wording ─► recommend
"""
