"""Networks from files: read without running code, checked, in eval mode and float32, or refused in one line."""
