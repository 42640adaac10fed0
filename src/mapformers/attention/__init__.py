"""Multi-head attention with exchangeable ports, rotary positions, and decode state."""
