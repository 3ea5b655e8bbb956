//! What a person reads of a finding: the failure text, the timeline as text, SVG and HTML; and the results of a
//! check as a file holds them, which [`merge`](merge()) joins.
//!
//! Pure functions from recorded data. They add nothing that is not in the record, and leave nothing
//! out without saying how much.

mod html;
mod lines;
mod merge;
mod results;
mod svg;
mod text;
mod timeline;

pub(crate) use results::file_name;

pub use html::page;
pub use merge::{MergeError, merge};
pub use results::{FORMAT, KeptRun, ParseResultsError, Results};
pub use svg::svg;
pub use text::{Replay, failure};
pub use timeline::timeline;

#[cfg(test)]
pub(crate) mod sample;
