//! Planes on real servers: their life, their death, and what they say when they fail.

mod life;
