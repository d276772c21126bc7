//! `freshctl`: the admin's and developer's command.
//!
//! It talks HTTP/1.1 to the daemon over a Unix socket, mostly the admin one; the verbs that
//! an app may use work on an app's socket too. No clock is read here: relative times are counted from the
//! `Date` of the daemon's own answer. Standard output holds what was asked for, standard error the
//! rest, and no secret is printed but by `freshctl token`.
//!
//! | module | has |
//! |---|---|
//! | `args` | the command line |
//! | `socket`, `client`, `call_error` | where the daemon is, and requests to it |
//! | `console`, `output`, `failure` | what is printed, how it looks, exit codes |
//! | `status`, `troubles`, `failing` | whether all is well; what is not, whom it concerns, what to do |
//! | `providers`, `grants`, `why`, `cause`, `token`, `control` | the commands that ask the daemon |
//! | `events` | what happened to grants, and happens |
//! | `export`, `secrets` | what is held: without tokens, or encrypted with them |
//! | `backup` | a copy of the store |
//! | `keys` | the data key, the key-encryption key, the recovery key |
//! | `many`, `renewal` | one verb for many grants; all of a provider refreshed |
//! | `import`, `bulk`, `lines`, `tally`, `report` | imports: one, many, and what became of each |
//! | `restore` | putting a copy in the store's place |
//! | `doctor` | what is around the daemon: key, directories, clock, providers, unit, sockets |
//! | `local` | the commands that need no daemon |

mod args;
mod audit;
mod backup;
mod bulk;
mod call_error;
mod cause;
mod client;
mod console;
mod control;
mod doctor;
mod events;
mod export;
mod failing;
mod failure;
mod grants;
mod import;
mod keys;
mod lines;
mod local;
mod many;
mod output;
mod providers;
mod renewal;
mod report;
mod restore;
mod secrets;
mod socket;
mod status;
mod tally;
#[cfg(test)]
mod tests;
mod token;
mod troubles;
mod why;

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;

use clap::error::ErrorKind;
use clap::{ArgMatches, CommandFactory, FromArgMatches};

use args::{Cli, Command, Key};
use client::Client;
pub use console::{Console, Terminals};
use failure::{Exit, Failure};
use output::Look;
use rustix::fs::{FileType, Mode};

/// Returns the definition of the command line.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command in this process's surroundings.
pub fn main() -> ExitCode {
    let terminals = Terminals {
        stdin: io::stdin().is_terminal(),
        stdout: io::stdout().is_terminal(),
        stderr: io::stderr().is_terminal(),
        stdout_is_readable: is_readable(io::stdout()),
    };
    let mut console = Console {
        stdin: Box::new(io::stdin()),
        stdout: &mut io::stdout(),
        stderr: &mut io::stderr(),
        terminals,
        env: &|name| std::env::var_os(name),
        root: rustix::process::geteuid().is_root(),
    };
    ExitCode::from(run(std::env::args_os(), &mut console))
}

/// Returns whether this is a regular file that other users may read.
fn is_readable(stream: impl AsFd) -> bool {
    rustix::fs::fstat(stream).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && Mode::from_raw_mode(stat.st_mode).intersects(Mode::RGRP | Mode::ROTH)
    })
}

/// Runs one command line, the program's name first, and returns the exit code.
pub fn run(args: impl IntoIterator<Item = OsString>, console: &mut Console<'_>) -> u8 {
    let parsed = Cli::command()
        .try_get_matches_from(args)
        .and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, name(&matches))));
    let (cli, command) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return usage(&error, console),
    };
    let ended = dispatch(cli, console).and_then(|exit| {
        console.stdout.flush().map_err(Failure::output)?;
        Ok(exit)
    });
    match ended {
        Ok(exit) => exit as u8,
        Err(failure) => console.tell(&failure.of(&command)),
    }
}

/// Returns the command's name, such as `key rotate`.
fn name(matches: &ArgMatches) -> String {
    let mut names = Vec::new();
    let mut below = matches.subcommand();
    while let Some((name, matches)) = below {
        names.push(name);
        below = matches.subcommand();
    }
    names.join(" ")
}

/// Prints help and version to standard output, anything else as an error of the command line.
fn usage(error: &clap::Error, console: &mut Console<'_>) -> u8 {
    let text = error.render().to_string();
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        return match console.print(&text) {
            Ok(()) => Exit::Ok as u8,
            Err(failure) => console.tell(&failure),
        };
    }
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let _ = write!(console.stderr, "freshctl: {text}");
    Exit::Usage as u8
}

/// What a command that asks the daemon works with.
struct Session<'c, 'i> {
    client: Arc<Client>,
    console: &'c mut Console<'i>,
    look: Look,
}

fn dispatch(cli: Cli, console: &mut Console<'_>) -> Result<Exit, Failure> {
    let global = cli.global;
    let plain = global.no_color || (console.env)("NO_COLOR").is_some_and(|value| !value.is_empty());
    let look = Look {
        terminal: console.terminals.stdout,
        color: !plain,
        json: global.json,
    };
    match cli.command {
        Command::CheckConfig { file } => {
            let file = file.or(global.config);
            return local::check_config(file.as_deref(), look, console);
        }
        Command::Key {
            command: Key::Generate { file },
        } => return local::generate_key(&file, look, console),
        Command::Key {
            command: Key::ChangeKek(args),
        } => return keys::change_kek(&args, global.config.as_deref(), look, console),
        Command::Key {
            command: Key::Recovery(args),
        } => return keys::recovery(&args, global.config.as_deref(), look, console),
        Command::Restore(args) => {
            return restore::restore(&args, global.config.as_deref(), look, console);
        }
        Command::Doctor { offline } => {
            let (socket, config) = (global.socket.as_deref(), global.config.as_deref());
            return doctor::doctor(offline, socket, config, look, console);
        }
        Command::Export(args) if args.offline => {
            let namespace = global.namespace.as_deref();
            return secrets::offline(&args, namespace, global.config.as_deref(), look, console);
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "freshctl", &mut script);
            if look.json {
                let script = String::from_utf8_lossy(&script);
                console.print_json(&serde_json::json!({ "script": script }))?;
                return Ok(Exit::Ok);
            }
            console.stdout.write_all(&script).map_err(Failure::output)?;
            return Ok(Exit::Ok);
        }
        _ => {}
    }
    let found = socket::find(
        global.socket.as_deref(),
        global.config.as_deref(),
        console.env,
        console.root,
    )?;
    match found.doubt {
        Some(doubt) if cli.command.only_looks() => {
            console.tell(&doubt);
            console.note(&format!("asking at {} all the same", found.path.display()));
        }
        Some(doubt) => return Err(doubt),
        None => {}
    }
    let client = Arc::new(Client::new(&found.path, global.namespace.as_deref()));
    let runtime = local::runtime()?;
    runtime.block_on(ask(
        cli.command,
        &mut Session {
            client,
            console,
            look,
        },
    ))
}

/// Refreshes one grant, a whole provider, or what the filters leave.
async fn refresh(session: &mut Session<'_, '_>, args: &args::Refresh) -> Result<Exit, Failure> {
    let many = &args.many;
    match (&args.user, &args.provider, &many.of) {
        (Some(user), Some(provider), _) => {
            token::refresh(session, user, provider, args.generation).await
        }
        (.., Some(provider))
            if many.is_whole_provider() && session.client.namespace().is_none() =>
        {
            renewal::renew(session, provider, many.dry_run, args.wait).await
        }
        // These are waited for one by one, as it is.
        _ => many::run(session, many::Verb::Refresh, many, true).await,
    }
}

/// Runs the commands that ask the daemon.
async fn ask(command: Command, session: &mut Session<'_, '_>) -> Result<Exit, Failure> {
    match command {
        Command::Status => status::status(session).await,
        Command::Providers => providers::providers(session).await,
        Command::Grants(args) => grants::list(session, &args).await,
        Command::Show { user, provider } => grants::show(session, &user, provider.as_deref()).await,
        Command::Why { grant } => why::why(session, &grant.user, &grant.provider).await,
        Command::Audit(args) => audit::audit(session, &args).await,
        Command::Events(args) => events::events(session, &args).await,
        Command::Export(args) => export::export(session, args).await,
        Command::Token(args) => token::token(session, &args).await,
        Command::Refresh(args) => refresh(session, &args).await,
        Command::Import(args) => match &args.jsonl {
            Some(file) => bulk::import(session, &args, file).await,
            None => import::import(session, &args).await,
        },
        Command::Activity { user } => control::activity(session, &user).await,
        Command::Pause(target) => control::change(session, &target, control::Way::Pause).await,
        Command::Resume(target) => control::change(session, &target, control::Way::Resume).await,
        Command::Release(args) => control::release(session, &args).await,
        Command::Revoke(args) => control::revoke(session, &args).await,
        Command::Backup { file, last } => backup::backup(session, &file, last).await,
        Command::Key {
            command: Key::Rotate,
        } => keys::rotate(session).await,
        Command::Restore(_)
        | Command::CheckConfig { .. }
        | Command::Doctor { .. }
        | Command::Key { .. }
        | Command::Completions { .. } => {
            unreachable!("the commands that need no daemon have been dispatched")
        }
    }
}
