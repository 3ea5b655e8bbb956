//! The command `laggard`: gets the servers that planes are made of.

mod progress;

use std::process::ExitCode;

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
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::NoAssets => 1,
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
