"""``python -m pe_retrofit.cli``, for launchers that start modules."""

from . import main

main()
