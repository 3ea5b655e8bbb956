//! On real servers: planes, their life, their death and what they say when they fail; and lag.

#[macro_use]
mod world;

mod any_server;
#[cfg(feature = "container")]
mod container;
mod crowd;
mod exploring;
mod faults;
mod fences;
mod lag;
mod life;
mod minors;
mod readme;
mod reset;
mod settings;
mod shards;
mod start;
mod template;
