"""What the documentation site generates from the package: pages of encodings, pictures, command line, Python names."""
