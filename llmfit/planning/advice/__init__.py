"""What to do: one change for a row that does not fit, the steps down, techniques for a machine.

remedy, ladder      for a model and a budget
advise              for a situation: techniques, with their measured effects
"""
