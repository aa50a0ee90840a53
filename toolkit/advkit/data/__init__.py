"""Data sets: what they are (`base`), the built-in ones, and transforms of training images (`transforms`)."""
