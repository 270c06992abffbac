"""The commands: each assembles its parts from all packages. ``cli.py`` holds the table of them."""
