"""Reference models that ship with the package, and the text that they were trained on."""
