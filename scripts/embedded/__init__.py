"""The generator behind the embedded model: a small world, its stories, questions and corpora."""
