"""Scripted devices that speak each protocol, with every counter a closed form of time."""
