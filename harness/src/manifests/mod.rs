//! Documents that are put on a plane, and the wait until they work.

mod crd;

pub(crate) use crd::install_crds;
