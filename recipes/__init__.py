"""Recipes and the wiring: command line, methods, stages, launch."""

from pathlib import Path

SHIPPED = Path(__file__).parent
"""The folder of the shipped recipes."""
