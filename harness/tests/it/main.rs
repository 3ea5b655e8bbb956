//! Planes on real servers: their life, their death, and what they say when they fail.

#[cfg(feature = "container")]
mod container;
mod life;
mod readme;
mod start;
mod world;
