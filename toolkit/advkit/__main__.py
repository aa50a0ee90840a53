"""`python -m advkit`."""

from .cli import main

main()
