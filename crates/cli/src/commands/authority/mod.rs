//! `pitser authority`: the timestamping service, and what its operator needs.

mod ask;
mod audit;
mod cluster;
mod compose;
mod config;
mod fleet;
mod init;
mod publish;
mod run;
mod sheet;
mod user;

use crate::outcome::Outcome;
use crate::service;

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make an authority: calendar, signing key, certificate, configuration, key file of users
    Init(init::Args),
    /// Sign, extend and publish until stopped; SIGHUP reads users and certificate again
    Run(run::Args),
    /// Make a stopped authority the first node of a cluster (docs/cluster.md)
    Found(cluster::Args),
    /// Publish the calendar's newest second now, or hand in a publications file that was composed
    /// where its key is
    Publish(publish::Args),
    /// Make the next publications file on a machine that has its key and no authority
    Compose(compose::Args),
    /// Make a page for print of a publication: its code, as text and QR code, and how to use it
    Sheet(sheet::Args),
    /// Ask a running authority how it is; exit code 1 if it has stopped signing, 2 if it is late
    Status(ask::Status),
    /// List the trails that guardians have registered; exit code 1 if one was begun anew, has shrunk
    /// or forked, 2 if one is silent
    Fleet(fleet::Args),
    /// Recompute the whole calendar, and compare it with everything that was published
    Audit(audit::Args),
    /// Who may ask, and how much
    #[command(subcommand)]
    User(user::Command),
}

/// Runs the command.
pub(crate) fn run(command: Command) -> Outcome {
    match command {
        Command::Init(args) => init::run(&args),
        Command::Run(args) => service::block_on(run::run(args)),
        Command::Found(args) => service::block_on(async move { cluster::found(&args).await }),
        Command::Publish(args) => publish::run(&args),
        Command::Compose(args) => compose::run(&args),
        Command::Sheet(args) => sheet::run(&args),
        Command::Status(args) => ask::status(&args),
        Command::Fleet(args) => fleet::run(&args),
        Command::Audit(args) => audit::run(&args),
        Command::User(command) => user::run(command),
    }
}
