"""What each command does: parts from all rooms, put together by hand. ``cli.py`` holds the table of them."""
