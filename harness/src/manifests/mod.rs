//! Documents that are put on a plane, and the wait until they work.

mod crd;
mod discovery;
mod documents;

pub(crate) use crd::{install_crds, until_served};
pub(crate) use discovery::{serves_resource, tells_resource, tells_version};
pub(crate) use documents::apply;
