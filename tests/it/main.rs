//! The harness and the operator together, on real servers.

mod kill;
