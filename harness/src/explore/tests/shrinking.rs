//! Shrinking and replay.
