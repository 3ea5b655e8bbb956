//! What a stream has received and shown, and what was asked, as plain data: no I/O, no clock, no async.

mod log;
mod request;
mod selector;
mod stream;

pub use self::{
    log::{Change, Event, Log, ObjectKey, Objects, View, compare_resource_versions},
    request::{AnsweredBy, Outcome, PatchType, Request, Verb},
    selector::{LabelSelector, ParseSelectorError},
    stream::{Connection, Identity, Representation, StreamDescription},
};
