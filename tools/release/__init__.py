"""Build and check what is published: sdist and wheel, and packages for Debian."""
