"""Measures of a policy: returns, and coverage of goals."""
