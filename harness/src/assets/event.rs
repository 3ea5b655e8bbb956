//! What is told while assets are obtained.

use std::path::PathBuf;
use std::time::Duration;

use super::{Binary, Version};

/// What is going on while assets are obtained; the library prints nothing itself.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A binary was found.
    Found {
        /// Which.
        binary: Binary,
        /// Where.
        path: PathBuf,
    },
    /// A file of the store is not what was put there; it is obtained anew.
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Another process obtains the same binaries; this one waits for it.
    Waiting {
        /// The version that both want.
        version: Version,
        /// The process that has the lock, as far as it said so.
        holder: Option<u32>,
        /// What that process does, in its own words; empty if it did not say.
        doing: String,
    },
    /// A request is on its way: the index, a checksum or a file.
    Downloading {
        /// What.
        what: String,
        /// Where from.
        url: String,
    },
    /// A part of a file has come. Told about four times a second at most.
    Progress {
        /// What.
        what: String,
        /// How much there is by now.
        received_bytes: u64,
        /// How much there will be, if the server said so.
        total_bytes: Option<u64>,
    },
    /// A download did not work out, and will be tried again.
    Retrying {
        /// What.
        what: String,
        /// What went wrong.
        problem: String,
        /// How long nothing is asked; as the server wants it, if it said so.
        after: Duration,
    },
    /// A file is there, and is what its checksum says.
    Downloaded {
        /// What.
        what: String,
        /// How long it took.
        took: Duration,
    },
    /// Nothing can be downloaded; whatever else there is will be tried.
    NotDownloaded {
        /// Why.
        problem: String,
    },
    /// A build has begun.
    Building {
        /// What is being built.
        binary: Binary,
        /// Its version; etcd's own for etcd.
        version: String,
        /// Which of the builds this is, from 1.
        number: usize,
        /// How many builds there are.
        of: usize,
        /// How long it takes on two cores with nothing cached, as measured by this project.
        usual: Duration,
    },
    /// A build has ended well.
    Built {
        /// What was built.
        binary: Binary,
        /// How long it took.
        took: Duration,
    },
}

/// Where events go.
pub(crate) type OnEvent<'a> = &'a (dyn Fn(Event) + Send + Sync);
