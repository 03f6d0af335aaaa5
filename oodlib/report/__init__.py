"""Report: the artefacts of runs become tables, statistics and verdicts on the paper's claims."""
