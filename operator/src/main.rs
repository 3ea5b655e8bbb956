//! The operator as a program.

use std::sync::Arc;

use anyhow::Result;
use clap::{Parser, Subcommand};
use kube::CustomResourceExt as _;
use seinode_operator::api::SeiNode;
use seinode_operator::controller;
use seinode_operator::settings::Settings;
use seinode_operator::sidecar::InCluster;

/// Takes SeiNodes from one image to the next
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the controller on the cluster of the current kubeconfig, or the one it runs in (default)
    Run,
    /// Print the custom resource definition, JSON
    Crd,
}

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    match Arguments::parse().command.unwrap_or(Command::Run) {
        Command::Run => {
            #[expect(
                clippy::disallowed_methods,
                reason = "the one place that wants a real cluster"
            )]
            let client = kube::Client::try_default().await?;
            let settings = Settings::default();
            let sidecars = Arc::new(InCluster::new(&settings));
            controller::run(client, sidecars, settings).await;
        }
        Command::Crd => print_crd()?,
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "this is the program's output")]
fn print_crd() -> Result<()> {
    println!("{}", serde_json::to_string_pretty(&SeiNode::crd())?);
    Ok(())
}
