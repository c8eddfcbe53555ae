"""`python -m guardlearn`: the command line."""

from guardlearn.cli import main

main()
