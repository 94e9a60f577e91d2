"""Retouching made realistic, section 2.2 of the supplement."""
