//! x

mod connect;
pub mod lag;
