"""What is measured: time and memory of mechanisms, audits, and the files that results are kept in."""
