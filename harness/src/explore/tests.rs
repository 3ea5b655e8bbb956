//! Tests of search, shrinking and replay together.
