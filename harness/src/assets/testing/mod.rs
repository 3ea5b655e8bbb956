//! What the tests of this module share.

pub(crate) mod mirror;
pub(crate) mod server;
