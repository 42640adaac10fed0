"""What a run and a mechanism look like: report.html, inline plots, pictures of patterns."""
