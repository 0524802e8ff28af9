"""Gates: read the evidence, judge it, issue a certificate, move the promotion pointer."""
