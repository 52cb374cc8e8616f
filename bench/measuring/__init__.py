"""Time, memory, ceilings and what a measurement ran on."""
