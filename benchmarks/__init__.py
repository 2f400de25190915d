"""The kit compared with what people would use instead."""
