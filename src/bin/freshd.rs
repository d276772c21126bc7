//! The daemon's executable; everything is in the library.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};

/// Keeps OAuth 2.0 tokens fresh, sealed, and served over a Unix socket.
#[derive(Parser)]
#[command(
    version,
    after_help = "Signals: SIGHUP reloads, SIGTERM drains and stops, a second SIGTERM stops at once.\n\
                  Exit codes: 0 stopped as told, 64 usage, 70 a bug (loop-ended in the log), 74 a file cannot be read or written, \
                  75 try again (the state directory or a socket is in use, or stopped at once), \
                  77 permission, 78 configuration or key; the demo: 1 if anything went otherwise than told."
)]
struct Arguments {
    /// The configuration file; conf.d/*.toml beside it is read too
    /// [default: /etc/freshd/freshd.toml, or $XDG_CONFIG_HOME/freshd/freshd.toml without root]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Shows the main job in a temporary directory, with an authorization server of its own
    Demo {
        /// The demo authorization server's port on 127.0.0.1 [default: any free one]
        #[arg(long)]
        port: Option<u16>,
        /// Ends by itself after this long, with a summary: 60s, 2m
        #[arg(long = "for", value_name = "TIME", value_parser = duration)]
        for_: Option<Duration>,
    },
    /// Writes the man pages and freshctl's completions
    #[command(hide = true)]
    Manual {
        /// Where to; made if it is missing
        directory: PathBuf,
    },
}

fn duration(text: &str) -> Result<Duration, String> {
    freshd::config::positive_duration(text)
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = if error.use_stderr() { 64 } else { 0 };
            // A closed pipe is no reason to fail.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match arguments.command {
        Some(Command::Demo { for_, port }) => {
            freshd::demo::main(freshd::demo::Options { for_, port })
        }
        Some(Command::Manual { directory }) => {
            match freshd::manual::write(&directory, Arguments::command()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("freshd: {}: {error}", directory.display());
                    ExitCode::from(73)
                }
            }
        }
        None => freshd::daemon::service::main(arguments.config.as_deref()),
    }
}
