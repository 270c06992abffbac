"""The device side of every protocol: what a switch would send, so that collectors meet something real without a network.

It is written from the protocols' specifications and shares no code with the decoders, which makes it a second opinion on them.
"""
