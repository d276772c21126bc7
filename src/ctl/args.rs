//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use super::failure::EXIT_CODES;

const ABOUT: &str = "Looks after freshd: what it keeps fresh, for whom, and what it cannot";
const STATUS_HELP: &str = "\
Exit code 0: all is well. 1: something needs somebody: a provider does not run or is late, grants need authorization, are \
quarantined or wait to be released, the store cannot be written, a nightly copy is missing, a reload was refused, the store was \
moved. What ends by itself (a cool-down, a renewal, a key rotation) and refresh tokens that are about to end are told, and are no trouble.";
const DOCTOR_HELP: &str = "\
Exit code 0: nothing is wrong (what could not be looked at is told as ?). 1: something is wrong, with what to do about it. \
Nothing is changed, and no secret leaves: token endpoints are sent an empty form. As root it sees everything.";
const GLOBAL: &str = "Options of every command";
const PROVIDER: &str = "The provider's name, or provider:account";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "freshctl", version, about = ABOUT, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options that every command takes.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// Prints the daemon's JSON instead of text for people
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub json: bool,
    /// The namespace that the users are in (default: the daemon's default; in lists: all)
    #[arg(long, global = true, value_name = "NS", value_parser = name, help_heading = GLOBAL)]
    pub namespace: Option<String>,
    /// The daemon's socket: the admin one, or for what it allows a shared or app one [env: FRESHD_SOCKET] [default: the configured admin socket]
    #[arg(long, global = true, value_name = "PATH", help_heading = GLOBAL)]
    pub socket: Option<PathBuf>,
    /// The configuration file [default: your own, where you are not root and have one, else /etc/freshd/freshd.toml]
    #[arg(long, global = true, value_name = "FILE", help_heading = GLOBAL)]
    pub config: Option<PathBuf>,
    /// Prints without colours, as the environment variable NO_COLOR does
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub no_color: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Says whether all is well, and if not, whom it concerns and what to do
    #[command(after_help = STATUS_HELP)]
    Status,
    /// Lists grants
    Grants(Grants),
    /// Shows a user, or one grant
    Show {
        /// The app's name for the user
        #[arg(value_parser = user)]
        user: String,
        #[arg(help = PROVIDER, value_parser = name)]
        provider: Option<String>,
    },
    /// Tells what happened to a grant, why it is as it is, and what to do
    Why {
        /// Whose, and where.
        #[command(flatten)]
        grant: Grant,
    },
    /// Tells what has happened to grants: what connected, paused, died, recovered, was deleted
    Events(Events),
    /// Tells who read tokens as an admin, who was refused, and what was changed about freshd itself
    Audit(Audit),
    /// Prints what is held, as JSON lines in the shape of import --jsonl: without tokens, or encrypted with them
    Export(Export),
    /// Prints an access token, and nothing else, to standard output
    Token(Token),
    /// Imports a grant (JSON on standard input), or many from a file
    Import(Import),
    /// Lets imports that were held (import --hold), and grants that were restored, be refreshed
    Release(Release),
    /// Refreshes now, as after an API refused the access token
    #[command(after_help = REFRESH_HELP)]
    Refresh(Refresh),
    /// Notes that a user is back: resumes, and refreshes what is stale
    Activity {
        /// The app's name for the user
        #[arg(value_parser = user)]
        user: String,
    },
    /// Stops refreshing a grant, all grants of a user, many, or a provider
    Pause(Target),
    /// Refreshes again what is paused, whatever the reason; with --all what an admin paused
    Resume(Target),
    /// Deletes a grant, all grants of a user, or many, and revokes them at their providers
    Revoke(Revoke),
    /// Lists the providers and how they fare
    Providers,
    /// Copies the store, sealed and with its keyring, to a new file that the daemon writes and checks
    Backup {
        /// The file; one that is there is never overwritten
        file: PathBuf,
        /// For a move to another host: nothing is refreshed or changed in this store any more
        #[arg(long = "final")]
        last: bool,
    },
    /// Puts a copy in the store's place; no daemon may use the state directory
    #[command(after_help = RESTORE_HELP)]
    Restore(Restore),
    /// Checks the configuration and says what it means; needs no daemon
    CheckConfig {
        /// The configuration file, as --config names it
        #[arg(value_name = "FILE", conflicts_with = "config")]
        file: Option<PathBuf>,
    },
    /// Looks at configuration, key, directories, disk, clock, providers, unit and sockets, and says what to do
    #[command(after_help = DOCTOR_HELP)]
    Doctor {
        /// Leaves the providers out
        #[arg(long)]
        offline: bool,
    },
    /// Makes and changes keys
    Key {
        /// What to do with a key.
        #[command(subcommand)]
        command: Key,
    },
    /// Prints a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

impl Command {
    /// Whether it changes nothing and shows no secret, so that no harm is done where it asks another daemon than was meant.
    pub fn only_looks(&self) -> bool {
        use Command::{Audit, Doctor, Events, Grants, Providers, Show, Status, Why};
        matches!(
            self,
            Status
                | Doctor { .. }
                | Grants(_)
                | Show { .. }
                | Why { .. }
                | Events(_)
                | Audit(_)
                | Providers
        )
    }
}

/// `grants`.
#[derive(Args, Clone, Debug, Default)]
pub struct Grants {
    /// Only those with this state
    #[arg(long, value_enum)]
    pub state: Option<State>,
    /// Only those with this reason of a state, such as quarantined
    #[arg(long)]
    pub reason: Option<String>,
    /// Only those whose refresh token is about to end
    #[arg(long)]
    pub ending: bool,
    /// Only active ones that fail: without a live access token, or three times in a row
    #[arg(long)]
    pub failing: bool,
    /// Only those at this provider
    #[arg(long)]
    pub provider: Option<String>,
    /// Only this user's
    #[arg(long, value_parser = user)]
    pub user: Option<String>,
    /// Only those whose scope lacks this one
    #[arg(long, value_name = "SCOPE")]
    pub missing_scope: Option<String>,
    /// At most this many (default: all)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
}

/// `export`.
#[derive(Args, Debug)]
#[command(after_help = EXPORT_HELP)]
pub struct Export {
    /// Only those with this state
    #[arg(long, value_enum)]
    pub state: Option<State>,
    /// Only those at this provider
    #[arg(long)]
    pub provider: Option<String>,
    /// Only those whose scope lacks this one
    #[arg(long, value_name = "SCOPE")]
    pub missing_scope: Option<String>,
    /// With access and refresh tokens, encrypted in age's format
    #[arg(long)]
    pub with_secrets: bool,
    /// Who can read them: a public key of age (age1…); may be repeated
    #[arg(long, value_name = "KEY", requires = "with_secrets")]
    pub recipient: Vec<String>,
    /// Writes to a new file of mode 0600 (default: standard output, which must not be a terminal)
    #[arg(long, short, value_name = "FILE", requires = "with_secrets")]
    pub output: Option<PathBuf>,
    /// Without a daemon: opens the store with its key, as root or as freshd's user where that may read it, after freshd was stopped
    #[arg(long, requires = "with_secrets")]
    pub offline: bool,
    /// With --offline, the key (default: the systemd credential freshd.key, else the configured key file)
    #[arg(long, value_name = "FILE", requires = "offline")]
    pub key_file: Option<PathBuf>,
}

const EXPORT_HELP: &str = "\
On the admin socket --with-secrets is root's, or every admin's where daemon.allow-export is true. Every export is told in the \
audit. Decrypted (age --decrypt -i KEY), an export is what import --jsonl reads. A grant that this freshd goes on refreshing \
rotates after the export, and the exported refresh token is spent: for a cut-over stop freshd and use --offline.";

/// `events`.
#[derive(Args, Debug)]
pub struct Events {
    /// Tells what happens from now on, refreshes included, instead of what has happened lately
    #[arg(long, short)]
    pub follow: bool,
    /// Only this user's
    #[arg(long, value_parser = user)]
    pub user: Option<String>,
    #[arg(long, help = PROVIDER, value_parser = name)]
    pub provider: Option<String>,
}

/// `audit`.
#[derive(Args, Debug)]
pub struct Audit {
    /// The newest so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub limit: u64,
    /// Only this: read, refused, rules-changed, backed-up, exported, renewed, key-rotation, restored
    #[arg(long)]
    pub action: Option<String>,
    /// Only what was about this user
    #[arg(long, value_parser = user)]
    pub user: Option<String>,
}

/// A grant's state.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum State {
    /// Refreshed when due
    Active,
    /// Not refreshed until something resumes it
    Paused,
    /// Only the user can mend it
    NeedsAuthorization,
}

/// One grant.
#[derive(Args, Debug)]
pub struct Grant {
    /// The app's name for the user
    #[arg(value_parser = user)]
    pub user: String,
    #[arg(help = PROVIDER, value_parser = name)]
    pub provider: String,
}

/// `token`.
#[derive(Args, Debug)]
pub struct Token {
    /// Whose, and where.
    #[command(flatten)]
    pub grant: Grant,
    /// Refreshes first if fewer seconds are left (default: the daemon's, 10)
    #[arg(long, value_name = "S")]
    pub min_ttl: Option<u64>,
    /// Waits at most so many seconds for that (default: the daemon's, 10)
    #[arg(long, value_name = "S")]
    pub wait: Option<u64>,
    /// How it is printed
    #[arg(long, value_enum, default_value_t = Format::Raw)]
    pub format: Format,
    /// Counts as the user's activity: an absent user's grants are resumed
    #[arg(long)]
    pub activity: bool,
}

/// How a token is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The access token
    Raw,
    /// The daemon's answer, as --json does
    Json,
    /// Authorization: Bearer TOKEN, as for curl -H
    Header,
}

/// `import`.
#[derive(Args, Debug)]
#[command(after_help = JSONL_HELP)]
pub struct Import {
    /// The app's name for the user
    #[arg(value_parser = user, required_unless_present = "jsonl", conflicts_with = "jsonl")]
    pub user: Option<String>,
    #[arg(help = PROVIDER, value_parser = name, required_unless_present = "jsonl", conflicts_with = "jsonl")]
    pub provider: Option<String>,
    /// Replaces grants that are there already
    #[arg(long)]
    pub replace: bool,
    /// Holds them: nothing is refreshed until release, so that the old system can be stopped first
    #[arg(long)]
    pub hold: bool,
    /// Imports many: one JSON object per line; - is standard input
    #[arg(long, value_name = "FILE")]
    pub jsonl: Option<PathBuf>,
    /// Writes what became of each line to a new file
    #[arg(long, value_name = "FILE", requires = "jsonl")]
    pub report: Option<PathBuf>,
    /// Goes on where the run that wrote this report stopped: skips the lines that were taken, and adds to the report
    #[arg(
        long,
        value_name = "REPORT",
        requires = "jsonl",
        conflicts_with = "report"
    )]
    pub resume_from: Option<PathBuf>,
}

const JSONL_HELP: &str = "\
The JSON has the members of a token response (RFC 6749, 5.1), and expires_at or obtained_at. \
A refresh_token alone is enough. With --jsonl each line also has user and provider, and may have account and namespace.

An import can be run again: grants that are there are unchanged. \
Lines that are not taken are told by number, the others go on; the exit code is 0 if all were taken and 1 if not.";

/// Which grants a verb is for, where it is for many.
#[derive(Args, Debug)]
pub struct Many {
    /// Every grant that the filters leave
    #[arg(long, help_heading = MANY)]
    pub all: bool,
    /// Only those at this provider
    #[arg(long = "provider", id = "of", value_name = "PROVIDER", requires = "all", value_parser = name, help_heading = MANY)]
    pub of: Option<String>,
    /// Only those with this state
    #[arg(long, value_enum, requires = "all", help_heading = MANY)]
    pub state: Option<State>,
    /// Only those whose scope lacks this one
    #[arg(long, value_name = "SCOPE", requires = "all", help_heading = MANY)]
    pub missing_scope: Option<String>,
    /// Says how many these are, and changes nothing
    #[arg(long, requires = "all", help_heading = MANY)]
    pub dry_run: bool,
}

impl Many {
    /// Whether the provider alone says which.
    pub fn is_whole_provider(&self) -> bool {
        self.of.is_some() && self.state.is_none() && self.missing_scope.is_none()
    }

    /// Whether anything but the namespace says which.
    pub fn has_filter(&self) -> bool {
        self.of.is_some() || self.state.is_some() || self.missing_scope.is_some()
    }
}

const MANY: &str = "Many at once";

/// `refresh`.
#[derive(Args, Debug)]
pub struct Refresh {
    /// The app's name for the user
    #[arg(value_parser = user, required_unless_present = "all", conflicts_with = "all", requires = "grant_provider")]
    pub user: Option<String>,
    #[arg(help = PROVIDER, id = "grant_provider", value_name = "PROVIDER", value_parser = name)]
    pub provider: Option<String>,
    /// The generation that was refused; if it is no longer the current one, nothing is refreshed
    #[arg(long, value_name = "N", conflicts_with = "all")]
    pub generation: Option<u64>,
    #[command(flatten)]
    pub many: Many,
    /// Stays until every grant has been refreshed
    #[arg(long, requires = "all", conflicts_with = "dry_run", help_heading = MANY)]
    pub wait: bool,
}

const REFRESH_HELP: &str = "\
refresh --all --provider NAME, without another filter, replaces every token set of a provider: after an incident it makes \
a stolen copy worthless where refresh tokens rotate. Grants of users who are away are refreshed too. It keeps to the provider's \
rate, goes on after a restart, and does not touch what is paused by an admin, held, restored, or in need of authorization.";

/// `revoke`.
#[derive(Args, Debug)]
pub struct Revoke {
    /// The app's name for the user
    #[arg(value_parser = user, required_unless_present = "all", conflicts_with = "all")]
    pub user: Option<String>,
    #[arg(help = PROVIDER, id = "grant_provider", value_name = "PROVIDER", value_parser = name)]
    pub provider: Option<String>,
    #[command(flatten)]
    pub many: Many,
    /// Does not ask
    #[arg(long, short)]
    pub yes: bool,
}

/// `release`.
#[derive(Args, Debug)]
pub struct Release {
    /// The app's name for the user
    #[arg(value_parser = user, required_unless_present = "all", conflicts_with = "all", requires = "grant_provider")]
    pub user: Option<String>,
    #[arg(help = PROVIDER, id = "grant_provider", value_name = "PROVIDER", value_parser = name)]
    pub provider: Option<String>,
    #[command(flatten)]
    pub many: Many,
}

/// `restore`.
#[derive(Args, Debug)]
pub struct Restore {
    /// What freshctl backup, or the nightly job, wrote
    pub file: PathBuf,
    /// Moves the store that is there into a directory beside it, named replaced-TIME
    #[arg(long)]
    pub replace: bool,
    /// The key of the copied store (default: the systemd credential freshd.key, else the configured key file)
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Opens the copy by its recovery key, - is standard input; the key is the one that freshd reads here then
    #[arg(long, value_name = "FILE")]
    pub recovery_key_file: Option<PathBuf>,
}

const RESTORE_HELP: &str = "\
Run it as root, or as the user that freshd runs as where that may read the key, after freshd was stopped. A copy can't tell how old it is: its refresh tokens may \
have been spent since. So grants of providers that rotate refresh tokens are not refreshed until they are released, \
while access tokens that live are served. Grants that were deleted since the copy was made are deleted again.";

/// `pause` and `resume`.
#[derive(Args, Debug)]
pub struct Target {
    /// The app's name for the user
    #[arg(value_parser = user, required_unless_present_any = ["provider_wide", "all"], conflicts_with_all = ["provider_wide", "all"])]
    pub user: Option<String>,
    #[arg(help = PROVIDER, id = "grant_provider", value_name = "PROVIDER", value_parser = name)]
    pub provider: Option<String>,
    /// A whole provider: no request leaves for it
    #[arg(long, value_name = "PROVIDER", value_parser = name, conflicts_with = "all")]
    pub provider_wide: Option<String>,
    #[command(flatten)]
    pub many: Many,
}

/// `key`.
#[derive(Debug, Subcommand)]
pub enum Key {
    /// Writes a new key to a new file of mode 0600; needs no daemon
    Generate {
        /// The file; one that is there is never overwritten
        file: PathBuf,
    },
    /// Seals everything anew with a new data key while the daemon goes on, then retires the old one
    Rotate,
    /// Puts another key in the place of the one that freshd is started with; no daemon may run
    #[command(after_help = OFFLINE_HELP)]
    ChangeKek(ChangeKek),
    /// Makes a recovery key and shows it once; no daemon may run
    #[command(after_help = OFFLINE_HELP)]
    Recovery(Recovery),
}

const OFFLINE_HELP: &str = "\
Run it as root, or as the user that freshd runs as where that may read the key, after freshd was stopped. Only the keyring is written, whole or not at all.";

/// `key change-kek`.
#[derive(Args, Debug)]
pub struct ChangeKek {
    /// The new key, as key generate writes it
    pub new_key_file: PathBuf,
    /// The old key (default: the systemd credential freshd.key, else the configured key file)
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// The recovery key in place of the old key, which may be lost; - is standard input. It stays one
    #[arg(long, value_name = "FILE", conflicts_with = "key_file")]
    pub recovery_key_file: Option<PathBuf>,
    /// Ends the recovery key that is there
    #[arg(long, conflicts_with = "recovery_key_file")]
    pub drop_recovery: bool,
}

/// `key recovery`.
#[derive(Args, Debug)]
pub struct Recovery {
    /// Ends the one that is there
    #[arg(long)]
    pub replace: bool,
    /// Ends the one that is there, and makes none
    #[arg(long, conflicts_with_all = ["replace", "output"])]
    pub remove: bool,
    /// Writes it to a new file of mode 0600; one that is there is never overwritten (default: standard output)
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// The key (default: the systemd credential freshd.key, else the configured key file)
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
}

/// Checks a user's name: 1 to 255 bytes, no control characters, not `.` or `..`.
pub fn user(text: &str) -> Result<String, String> {
    if text == "." || text == ".." {
        return Err("a user's name is not . or ..".to_owned());
    }
    name(text)
}

/// Checks a name that goes into a path or a header: 1 to 255 bytes, no control characters.
pub fn name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 255 {
        return Err(format!(
            "a name has 1 to 255 bytes, this one has {}",
            text.len()
        ));
    }
    if text.chars().any(char::is_control) {
        return Err("a name has no control characters".to_owned());
    }
    Ok(text.to_owned())
}
