//! What a stream has received and shown, and what was asked, as plain data: no I/O, no clock, no async.

mod choice;
mod fields;
mod legal;
mod log;
mod menu;
mod names;
mod request;
mod run;
mod selector;
mod stream;
mod trace;
mod verdict;

pub(crate) use self::request::is_for_people;
pub(crate) use self::trace::{is_moment, is_uuid, rename_fields, replace_uuids, replace_word};
pub use self::{
    choice::{Alt, Chooser, Chosen, Freshest, Kind, MenuError, Point},
    fields::{FieldSelector, ParseFieldSelectorError},
    legal::{Axiom, Illegal, check, interleavings},
    log::{Change, Event, Log, ObjectKey, Objects, View, compare_resource_versions},
    menu::{Offer, answers_at, moves_at},
    names::{Label, ParseLabelError, ParsePointIdError, PointId},
    request::{AnsweredBy, Outcome, PatchType, Request, Verb},
    run::{
        Action, Author, CachedRead, Commit, EnvironmentStep, Fault, Hold, ListEnd, ListStart,
        ListVersion, PassStart, Query, Reference, Release, RequestStep, Role, Run, Seen,
        ShownEvent, Site, Source, Step, StreamRecord, Trigger, Violation,
    },
    selector::{LabelSelector, ParseSelectorError},
    stream::{Connection, Identity, Representation, StreamDescription},
    trace::normalised,
    verdict::{
        Bound, Bounds, Certificate, CertifiedView, Completeness, Confirmation, Ended, Finding,
        HeldEvent, Needs, READS_BETWEEN_REPLIES, Repair, Shard, ShardError, Verdict,
    },
};
