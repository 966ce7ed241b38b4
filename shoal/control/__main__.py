"""`python -m shoal.control`: the control store as a process of its own (see `main`)."""

from shoal.control.main import main

main()
