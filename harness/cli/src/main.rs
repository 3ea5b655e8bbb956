//! The command `laggard`: gets the servers that planes are made of.

mod assets;
mod progress;

use std::process::ExitCode;

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
}

/// What the exit status says.
pub(crate) enum Exit {
    /// The command did what it was asked for.
    Done,
    /// The servers could not be had. (Wrong usage is 2, from the argument parser.)
    NoAssets,
    /// A file of the store is not what was put there.
    Damaged,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::NoAssets => 1,
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
