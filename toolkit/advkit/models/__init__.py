"""Models: how one is built for a data set (`base`), and the built-in ones."""
