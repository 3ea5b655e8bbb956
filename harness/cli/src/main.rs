//! The command `laggard`: gets the servers that planes are made of, and joins the results of checks that were split.

mod assets;
mod merge;
mod progress;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use assets::AssetsCommand;

/// Integration tests for Kubernetes controllers, on a real control plane
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The servers: etcd, kube-apiserver, kube-controller-manager, and kubectl
    #[command(subcommand)]
    Assets(AssetsCommand),
    /// Join the results of all parts of one check
    ///
    /// Each part wrote NAME.shard-1-of-4.json and its like. Prints the verdict and what failed on standard output. Exit
    /// status 1: a run failed; 2: the files are not the parts of one check, each once.
    Merge {
        /// The results of the parts, in any order
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// The directory for the joined NAME.json and the page NAME.html [default: neither is written]
        #[arg(long)]
        out: Option<PathBuf>,
    },
}

/// What the exit status says.
pub(crate) enum Exit {
    /// The command did what it was asked for.
    Done,
    /// The servers could not be had. (Wrong usage is 2, from the argument parser.)
    NoAssets,
    /// What was merged has runs that failed.
    Failures,
    /// What was to be merged cannot be.
    NotMerged,
    /// A file of the store is not what was put there.
    Damaged,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::NoAssets | Exit::Failures => 1,
            Exit::NotMerged => 2,
            Exit::Damaged => 3,
        })
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    match Arguments::parse().command {
        Command::Assets(command) => assets::run(command).await.into(),
        Command::Merge { files, out } => match merge::run(&files, out.as_deref()) {
            Ok((text, passes)) => {
                assets::data(&text);
                if passes { Exit::Done } else { Exit::Failures }.into()
            }
            Err(error) => {
                progress::say(&format!("error: {error:#}"));
                Exit::NotMerged.into()
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Arguments::command().debug_assert();
    }
}
