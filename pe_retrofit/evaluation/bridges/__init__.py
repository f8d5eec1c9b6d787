"""Tasks, texts and metrics of other libraries, behind the same results file."""
