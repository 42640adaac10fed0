"""The native range kernel for the CPU: one C++ source, compiled on first use, checked, and never required."""
