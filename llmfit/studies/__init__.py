"""Studies: what each technique costs and gives on this machine, one package a study."""
