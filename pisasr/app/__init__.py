"""Infer, turned by hand: `pisasr app`, a local page with two sliders. desk: the work; page: its
looks and its ears.
"""
