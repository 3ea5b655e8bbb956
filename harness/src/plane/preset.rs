//! Presets: what a plane is tuned for, beyond the flags that every plane has.

use std::fmt::{self, Display};
use std::path::{Path, PathBuf};

use super::BackendKind;
use super::backend::GO_SETTINGS;
use super::directory::MEMORY;
use super::flags::Flags;

/// What a plane is tuned for; its `Display` is for reports.
///
/// # Example
///
/// ```
/// use laggard::plane::Preset;
///
/// assert_eq!(Preset::Standard.to_string(), "standard");
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum Preset {
    /// As near to a production server as a test can be.
    #[default]
    Standard,
    /// For thousands of short runs: see [`PlaneBuilder::exploring`](super::PlaneBuilder::exploring).
    #[non_exhaustive]
    Exploring {
        /// Whether etcd keeps its data in memory. If not, there was no file system in memory with
        /// a gigabyte to spare.
        etcd_in_memory: bool,
    },
}

impl Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Standard => f.write_str("standard"),
            Self::Exploring { etcd_in_memory } => write!(
                f,
                "exploring (no watch cache, no LimitRanger, no ResourceQuota, no compaction of the \
                 server's own, etcd {}, GOGC={EXPLORING_GOGC})",
                if *etcd_in_memory { "in memory" } else { "on disk" }
            ),
        }
    }
}

/// A preset with everything that depends on this machine.
#[derive(Clone, Debug)]
pub(crate) struct Tuning {
    pub(crate) preset: Preset,
    /// The directory in memory below which the plane's own directory is made.
    pub(crate) memory: Option<PathBuf>,
    pub(crate) etcd: Flags,
    pub(crate) apiserver: Flags,
    /// Admission plugins that are off.
    pub(crate) plugins_off: &'static [&'static str],
    /// What the Go runtimes of the servers are told.
    pub(crate) go: [(&'static str, &'static str); 2],
}

impl Tuning {
    pub(crate) fn standard() -> Self {
        Self {
            preset: Preset::Standard,
            memory: None,
            etcd: Flags::new(),
            apiserver: Flags::new(),
            plugins_off: &[],
            go: GO_SETTINGS,
        }
    }

    pub(crate) fn exploring(backend: BackendKind) -> Self {
        // In a container etcd's data is in memory anyway; how much there is, the engine knows.
        let (memory, in_memory, quota) = match backend {
            BackendKind::Process => match free_memory(Path::new(MEMORY)) {
                // Rather etcd's own "no space" than a file system that is full below it.
                Some(free) => (Some(MEMORY.into()), true, QUOTA.min(free / 4 * 3)),
                None => (None, false, QUOTA),
            },
            BackendKind::Container => (None, true, QUOTA),
        };
        let etcd = Flags::new()
            .set("auto-compaction-retention", "0")
            .set("max-request-bytes", MAX_REQUEST_BYTES.to_string())
            .set("max-txn-ops", MAX_TXN_OPS.to_string())
            .set("quota-backend-bytes", quota.to_string())
            // Each is 64 MiB, whether full or not; the default keeps five.
            .set("max-wals", "2");
        let apiserver =
            Flags::new().set("watch-cache", "false").set("etcd-compaction-interval", "0");
        Self {
            preset: Preset::Exploring { etcd_in_memory: in_memory },
            memory,
            etcd,
            apiserver,
            plugins_off: &["LimitRanger", "ResourceQuota"],
            go: [("GOGC", EXPLORING_GOGC), ("GOMEMLIMIT", "1GiB")],
        }
    }
}

/// Less is of no use: etcd's logs alone take up to three times 64 MiB. A container has 64 MiB by
/// default.
const LEAST_MEMORY: u64 = 1 << 30;

/// etcd's own default is 2 GiB. A schedule costs some ten kilobytes until the next compaction.
const QUOTA: u64 = 4 << 30;

/// etcd's defaults are 1.5 MiB and 128. It warns of requests beyond 10 MiB.
const MAX_REQUEST_BYTES: u64 = 10 << 20;
const MAX_TXN_OPS: usize = 4096;

const EXPLORING_GOGC: &str = "400";

/// How many bytes are free in a file system in memory; `None` if it is none, or has too few.
#[cfg(target_os = "linux")]
fn free_memory(directory: &Path) -> Option<u64> {
    let about = rustix::fs::statfs(directory).ok()?;
    // linux/magic.h: TMPFS_MAGIC.
    let in_memory = u64::try_from(about.f_type).is_ok_and(|kind| kind == 0x0102_1994);
    let block = u64::try_from(about.f_bsize).ok()?;
    let free = about.f_bavail.saturating_mul(block);
    let writable = rustix::fs::access(directory, rustix::fs::Access::WRITE_OK).is_ok();
    (in_memory && writable && free >= LEAST_MEMORY).then_some(free)
}

#[cfg(not(target_os = "linux"))]
fn free_memory(_: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn only_a_file_system_in_memory_is_taken_for_memory() {
        for no_memory in ["/proc", "/sys", "/no/such/directory"] {
            assert_eq!(free_memory(Path::new(no_memory)), None, "{no_memory}");
        }
    }

    #[test]
    fn a_report_reads_which_servers_it_was() {
        let text = Preset::Exploring { etcd_in_memory: false }.to_string();
        assert!(text.contains("no watch cache") && text.contains("etcd on disk"), "{text}");
    }
}
