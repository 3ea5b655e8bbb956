//! Documents that are put on a plane, and the wait until they work.

mod crd;
mod discovery;

pub(crate) use crd::install_crds;
pub(crate) use discovery::{tells_resource, tells_version};
