"""What comes with a model from a stranger, within bounds and before any library opens it.

    config.json, tokenizer.json, indexes ─► json ─► facts: values of the kind and range asked for
    safetensors, GGUF ─► files: their headers        code: pickles, a model's own Python
    what libraries raise all the same ─► errors: one of ours, with the file's name

Nothing here allocates what a file claims, opens what lies outside its folder, or runs what it
holds.
"""
