"""sFlow version 5: receiver, decoder and rows of every family."""
