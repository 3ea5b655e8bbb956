//! The command `laggard`: gets the servers that planes are made of, and joins the results of checks that were split.

mod merge;
mod progress;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use laggard::assets::Wanted;

use progress::Progress;

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

#[derive(Debug, Subcommand)]
enum AssetsCommand {
    /// Find the servers of one Kubernetes version, or build those that are nowhere
    ///
    /// Looks at TEST_ASSET_ETCD and its like, KUBEBUILDER_ASSETS, the store shared with setup-envtest, and
    /// /usr/local/kubebuilder/bin. What is missing is built from its Go modules, which takes about
    /// five minutes on two cores and is done once. Prints one path a line on standard output.
    Get {
        /// The version: a minor such as 1.37, or an exact one such as 1.37.2 [default: the newest known]
        #[arg(env = "LAGGARD_KUBERNETES")]
        kubernetes: Option<String>,
    },
}

/// What the exit status says.
enum Exit {
    /// The command did what it was asked for.
    Done,
    /// The servers could not be had. (Wrong usage is 2, from the argument parser.)
    NoAssets,
    /// What was merged has runs that failed.
    Failures,
    /// What was to be merged cannot be.
    NotMerged,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::NoAssets | Exit::Failures => 1,
            Exit::NotMerged => 2,
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
        Command::Assets(AssetsCommand::Get { kubernetes }) => get(kubernetes).await.into(),
        Command::Merge { files, out } => match merge::run(&files, out.as_deref()) {
            Ok((text, passes)) => {
                data(&text);
                if passes { Exit::Done } else { Exit::Failures }.into()
            }
            Err(error) => {
                progress::say(&format!("error: {error:#}"));
                Exit::NotMerged.into()
            }
        },
    }
}

async fn get(kubernetes: Option<String>) -> Exit {
    let wanted = kubernetes.map_or_else(Wanted::newest, Wanted::kubernetes);
    let progress = Progress::new();
    let result = wanted.get(|event| progress.show(&event)).await;
    progress.finish();
    match result {
        Ok(assets) => {
            for (_, path) in assets.iter() {
                data(&path.display().to_string());
            }
            Exit::Done
        }
        Err(error) => {
            progress::say(&format!("error: {error}"));
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                progress::say(&format!("  because: {cause}"));
                source = cause.source();
            }
            Exit::NoAssets
        }
    }
}

/// Standard output is for what another program may read.
#[expect(clippy::print_stdout, reason = "this is the program's output")]
fn data(line: &str) {
    println!("{line}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Arguments::command().debug_assert();
    }
}
