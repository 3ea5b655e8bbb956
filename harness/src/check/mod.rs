//! Scenarios made in many worlds, each with other choices, and what must hold in all of them.

#[cfg_attr(not(test), expect(dead_code, reason = "for the runs that are made in worlds"))]
mod oracles;
mod truth;

pub use self::{
    oracles::{BuiltIn, Claim, Oracles, Sighting},
    truth::Truth,
};
