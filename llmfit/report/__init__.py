"""Turns a comparison into text for people and machines."""
