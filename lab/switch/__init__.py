"""Scripted switches that speak each protocol; every counter is a closed form of time."""
