"""The lab: scripted switches that speak every protocol, and a virtual fabric, so that collectors have input without a network.

The exporters are written from the protocols' specifications and share no code with the decoders, so they check the decoders independently.
"""
