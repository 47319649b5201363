"""Studies: what each optimisation technique costs and gives on this machine, one file a study."""
