//! What goes wrong when a test moves a stream, with how the streams stood.

use std::fmt;

/// A verb that could not do what it was asked to.
///
/// The text names the verb, the streams that were meant and, on lines of their own, how they stood.
#[derive(Debug, thiserror::Error)]
#[error("failed to {attempt} ({meant}): {kind}{evidence}")]
pub struct StreamError {
    attempt: String,
    meant: String,
    kind: StreamErrorKind,
    evidence: String,
}

impl StreamError {
    pub(super) fn new(
        attempt: impl Into<String>,
        meant: impl fmt::Display,
        kind: StreamErrorKind,
        evidence: impl Into<String>,
    ) -> Self {
        Self { attempt: attempt.into(), meant: meant.to_string(), kind, evidence: evidence.into() }
    }

    /// Why, to branch on.
    #[must_use]
    pub fn kind(&self) -> StreamErrorKind {
        self.kind
    }
}

/// Why a verb failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum StreamErrorKind {
    /// No stream is what was meant; the text lists those that exist.
    NoStream,
    /// Several are; the text lists them, each with the calls that single it out.
    Ambiguous,
    /// The stream is not held, so nothing can be released.
    NotHeld,
    /// Nothing came to be released within the deadline.
    NothingHeld,
    /// What was awaited was not received from the server within the deadline.
    NotReceived,
    /// It was received, and the client did not take it in within the deadline: its consumer is busy, or it has
    /// no open watch. What was not handed over is held as before.
    NotTaken,
    /// The client did not list anew within the deadline.
    NotRelisted,
    /// The client has no watch that could be ended.
    NoWatch,
    /// The client's initial list may not show the state that was chosen: it lists consistently, or asks for
    /// something newer.
    IllegalStart,
    /// The client listed anew while an event was on its way to it.
    Relisted,
    /// The resource version is no decimal number, so it cannot be compared.
    NoNumber,
    /// An object of the view is not what the Rust type expects.
    Unreadable,
}

impl fmt::Display for StreamErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoStream => "the client has no such stream; its streams are",
            Self::Ambiguous => "several streams match; narrow the choice with",
            Self::NotHeld => "the stream is not held; call hold() first",
            Self::NothingHeld => "no event is waiting",
            Self::NotReceived => "it has not been received",
            Self::NotTaken => "the client has not taken it in",
            Self::NotRelisted => "the client has not listed anew",
            Self::NoWatch => "the client has dropped its watch",
            Self::IllegalStart => {
                "its list may not show that state; only a list at resource version 0 can show an older one"
            }
            Self::Relisted => "the client has listed anew meanwhile",
            Self::NoNumber => "the resource version is not a decimal number",
            Self::Unreadable => "an object does not fit the type",
        })
    }
}
