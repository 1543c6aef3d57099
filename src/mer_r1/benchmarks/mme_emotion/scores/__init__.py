"""Official scores, equal to the reference, and audited scores beside them."""
