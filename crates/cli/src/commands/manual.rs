//! `pitser completions` and `pitser man`: what shells and `man` know of the command line.

use std::path::PathBuf;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::outcome::{Exit, Failure, Outcome};
use crate::output;

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
pub(crate) struct CompletionsArgs {
    /// The shell; its manual tells where the text belongs, for bash
    /// /etc/bash_completion.d/pitser
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the completions of `command`.
pub(crate) fn completions(args: &CompletionsArgs, mut command: Command) -> Outcome {
    let mut text = Vec::new();
    let name = command.get_name().to_owned();
    clap_complete::generate(args.shell, &mut command, name, &mut text);
    output::print_bytes(&text)?;
    Ok(Exit::Intact)
}

/// Arguments of `man`.
#[derive(Debug, clap::Args)]
pub(crate) struct ManArgs {
    /// Write a page for each command into this folder, such as /usr/local/share/man/man1
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// Prints the page of `command`, or writes those of all its commands.
pub(crate) fn man(args: &ManArgs, command: Command) -> Outcome {
    let Some(folder) = &args.output else {
        let mut page = Vec::new();
        Man::new(command)
            .render(&mut page)
            .map_err(Failure::service)?;
        output::print_bytes(&page)?;
        return Ok(Exit::Intact);
    };
    std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(command, folder))
        .map_err(|e| Failure::Service(format!("cannot write to {}: {e}", folder.display())))?;
    Ok(Exit::Intact)
}
