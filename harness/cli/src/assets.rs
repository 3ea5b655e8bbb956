//! `laggard assets`: what there is, getting it, looking after it.

use std::fmt::Display;

use clap::{Args, Subcommand};
use laggard::assets::{AssetError, Assets, Binary, Prune, Selector, Store, Verdict, Wanted};

use crate::Exit;
use crate::progress::{self, Progress};

#[derive(Debug, Subcommand)]
pub(crate) enum AssetsCommand {
    /// Say which versions there are: in the store, to be downloaded, to be built
    ///
    /// Prints a line a version, newest first: the version, and how it can be had.
    List {
        #[command(flatten)]
        version: VersionArgument,
        #[command(flatten)]
        sources: Sources,
    },
    /// Find the servers of one Kubernetes version, or obtain those that are nowhere
    ///
    /// Looks at TEST_ASSET_ETCD and its like, KUBEBUILDER_ASSETS, the store shared with
    /// setup-envtest, and /usr/local/kubebuilder/bin. What is missing is downloaded; what cannot be
    /// downloaded is built from its Go modules, which takes about five minutes on two cores and is
    /// done once. Prints one path a line on standard output.
    Get {
        #[command(flatten)]
        version: VersionArgument,
        #[command(flatten)]
        sources: Sources,
    },
    /// Build the servers of one version from their Go modules into the store
    ///
    /// Whatever else is on this machine or could be downloaded. What is in the store stays. Prints
    /// one path a line on standard output.
    Build {
        #[command(flatten)]
        version: VersionArgument,
        /// Open no socket: build from Go's module cache
        #[arg(long)]
        offline: bool,
    },
    /// Read every file of the store and compare it with what was put there
    ///
    /// Prints a line a file. The exit status is 3 if one is damaged; `get` obtains it anew.
    Verify {
        #[command(flatten)]
        version: VersionArgument,
    },
    /// Remove versions from the store, and what broken-off attempts left
    Prune {
        /// Which versions: 1.35, 1.35.4, '<1.36' and so on [default: none, only what was left behind]
        version: Option<String>,
        /// Every version
        #[arg(long, conflicts_with = "version")]
        all: bool,
        /// Say what would go, and remove nothing
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Args, Debug)]
pub(crate) struct VersionArgument {
    /// The version: 1.37, 1.37.2, ~1.36.1, '<1.37', latest, latest-on-disk; a trailing ! asks the
    /// index for a newer one [default: the newest minor known]
    #[arg(env = "LAGGARD_KUBERNETES")]
    kubernetes: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Sources {
    /// Only what is on this machine: neither download nor build
    #[arg(short, long)]
    installed_only: bool,
    /// Open no socket: what is on this machine, or can be built from Go's module cache
    /// [env: LAGGARD_OFFLINE]
    #[arg(long)]
    offline: bool,
    /// The URL of another index of releases [env: LAGGARD_ASSETS_INDEX]
    #[arg(long, value_name = "URL")]
    index: Option<String>,
    /// The URL of a folder that has all that is downloaded [env: LAGGARD_ASSETS_MIRROR]
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
}

impl VersionArgument {
    fn wanted(&self) -> Wanted {
        match self.text() {
            None => Wanted::newest(),
            Some(version) => Wanted::kubernetes(version),
        }
    }

    /// An empty variable says nothing.
    fn text(&self) -> Option<&str> {
        self.kubernetes.as_deref().filter(|version| !version.is_empty())
    }
}

impl Sources {
    /// A switch that is not given leaves the word to the environment.
    fn apply(&self, mut wanted: Wanted) -> Wanted {
        if self.installed_only {
            wanted = wanted.installed_only(true);
        }
        if self.offline {
            wanted = wanted.offline(true);
        }
        if let Some(url) = &self.index {
            wanted = wanted.index(url);
        }
        if let Some(url) = &self.mirror {
            wanted = wanted.mirror(url);
        }
        wanted
    }
}

pub(crate) async fn run(command: AssetsCommand) -> Exit {
    let result = match command {
        AssetsCommand::List { version, sources } => list(sources.apply(version.wanted())).await,
        AssetsCommand::Get { version, sources } => {
            let progress = Progress::new();
            let wanted = sources.apply(version.wanted());
            let assets = wanted.get(|event| progress.show(&event)).await;
            paths(&progress, assets)
        }
        AssetsCommand::Build { version, offline } => {
            let progress = Progress::new();
            let wanted = match offline {
                true => version.wanted().offline(true),
                false => version.wanted(),
            };
            let assets = wanted.build(|event| progress.show(&event)).await;
            paths(&progress, assets)
        }
        AssetsCommand::Verify { version } => verify(version.text()).await,
        AssetsCommand::Prune { version, all, dry_run } => {
            prune(version.as_deref(), all, dry_run).await
        }
    };
    result.unwrap_or_else(|error| {
        progress::say(&format!("error: {error}"));
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            progress::say(&format!("  because: {cause}"));
            source = cause.source();
        }
        Exit::NoAssets
    })
}

fn paths(progress: &Progress, assets: Result<Assets, AssetError>) -> Result<Exit, AssetError> {
    progress.finish();
    for (_, path) in assets?.iter() {
        data(path.display());
    }
    Ok(Exit::Done)
}

async fn list(wanted: Wanted) -> Result<Exit, AssetError> {
    let progress = Progress::new();
    let listing = wanted.list(|event| progress.show(&event)).await;
    progress.finish();
    let listing = listing?;
    for known in &listing.versions {
        let mut ways = Vec::new();
        if !known.installed.is_empty() {
            let names: Vec<_> = known.installed.iter().map(|binary| binary.name()).collect();
            ways.push(format!("installed ({})", names.join(", ")));
        }
        if known.can_be_downloaded {
            ways.push("can be downloaded".to_owned());
        }
        if known.can_be_built {
            ways.push("can be built".to_owned());
        }
        data(format!("{:<16} {}", known.version.to_string(), ways.join("; ")));
    }
    if let Some(problem) = listing.index_problem {
        progress::say(&format!("what can be downloaded is not known: {problem}"));
    }
    Ok(Exit::Done)
}

async fn verify(version: Option<&str>) -> Result<Exit, AssetError> {
    let selector = version.map(str::parse::<Selector>).transpose()?;
    let Some(store) = Store::of_this_user()? else { return Ok(Exit::Done) };
    let checked = store.verify(selector.as_ref()).await;
    let mut damaged = 0;
    for file in &checked {
        let verdict = match &file.verdict {
            Verdict::Intact => match store.origin_of(&file.version, file.binary) {
                origin if origin.is_empty() => "intact".to_owned(),
                origin => format!("intact ({origin})"),
            },
            Verdict::Unrecorded => "runs; no digest, since somebody else put it there".to_owned(),
            Verdict::Damaged(problem) => {
                damaged += 1;
                format!("damaged: {problem}")
            }
            other => format!("{other:?}"),
        };
        data(format!("{}: {verdict}", file.path.display()));
    }
    if damaged > 0 {
        progress::say(&format!(
            "{damaged} of {} files are damaged; `laggard assets get VERSION` obtains them anew",
            checked.len()
        ));
        return Ok(Exit::Damaged);
    }
    progress::say(&format!("{} files, none damaged", checked.len()));
    Ok(Exit::Done)
}

async fn prune(version: Option<&str>, all: bool, dry_run: bool) -> Result<Exit, AssetError> {
    let selector = match (version, all) {
        (Some(version), _) => Some(version.parse::<Selector>()?),
        (None, true) => Some(Selector::ANY),
        (None, false) => None,
    };
    let Some(store) = Store::of_this_user()? else { return Ok(Exit::Done) };
    let mode = if dry_run { Prune::DryRun } else { Prune::Remove };
    let progress = Progress::new();
    let removed = store.prune(selector.as_ref(), mode, |event| progress.show(&event)).await;
    progress.finish();
    let removed = removed?;
    for directory in &removed {
        data(directory.path.display());
    }
    let megabytes = removed.iter().map(|it| it.size_bytes).sum::<u64>() / 1_000_000;
    let verb = if dry_run { "would free" } else { "freed" };
    progress::say(&format!("{verb} {megabytes} MB"));
    if version.is_some() && removed.is_empty() {
        let there: Vec<_> = store
            .installed()
            .iter()
            .map(|(version, binaries): &(_, Vec<Binary>)| format!("{version} ({})", binaries.len()))
            .collect();
        let there = if there.is_empty() { "nothing".to_owned() } else { there.join(", ") };
        progress::say(&format!("no such version in the store; there is {there}"));
    }
    Ok(Exit::Done)
}

/// Standard output is for what another program may read.
#[expect(clippy::print_stdout, reason = "this is the program's output")]
pub(crate) fn data(line: impl Display) {
    println!("{line}");
}
