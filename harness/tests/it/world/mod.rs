//! Worlds on real servers: moments, forks, erasures, and what is left of them.

mod measure;
