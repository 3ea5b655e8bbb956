//! What a person reads of a finding: the failure text, the timeline as text, SVG and HTML.
//!
//! Pure functions from recorded data. They add nothing that is not in the record, and leave nothing
//! out without saying how much.

mod html;
mod lines;
mod svg;
mod text;
mod timeline;

pub use html::{Page, page};
pub use svg::svg;
pub use text::{Replay, failure};
pub use timeline::timeline;

#[cfg(test)]
mod sample;
