"""Plots: tables and arrays become figures, one module for each thing that figures show."""
