"""Measurements. They import the project and nothing imports them; no test asserts a time."""
