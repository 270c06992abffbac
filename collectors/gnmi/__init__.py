"""gNMI dial-in: receiver, decoder, recordings and packs of paths."""
