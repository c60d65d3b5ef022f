"""Measure: what the method costs (counted), how long it takes (timed in pairs), and whether a fast
path is right.
"""
