//! On real servers: planes, their life, their death and what they say when they fail; and lag.

#[cfg(feature = "container")]
mod container;
mod exploring;
mod lag;
mod life;
mod minors;
mod readme;
mod shards;
mod start;
mod world;
