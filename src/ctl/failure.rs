//! How a command ends: its exit code, and what it says when it could not do its work.

use std::io;

/// The exit codes, mostly those of `sysexits.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// `status`: something needs attention. `doctor`: something is wrong. `import`: not everything was taken. A verb for many: some were refused.
    Attention = 1,
    /// There is no such grant (404).
    NoSuchGrant = 4,
    /// The grant needs authorization or is paused (409).
    NotServed = 5,
    /// The command line is wrong (`EX_USAGE`).
    Usage = 64,
    /// The input is wrong (`EX_DATAERR`).
    Data = 65,
    /// The input, or a file of the configuration, cannot be opened (`EX_NOINPUT`).
    NoInput = 66,
    /// The daemon cannot be reached (`EX_UNAVAILABLE`).
    Unavailable = 69,
    /// The daemon failed, or answered what this command does not understand (`EX_SOFTWARE`).
    Internal = 70,
    /// A file cannot be created (`EX_CANTCREAT`).
    CannotCreate = 73,
    /// Reading or writing failed (`EX_IOERR`).
    Io = 74,
    /// It may work later (`EX_TEMPFAIL`).
    TryLater = 75,
    /// Not allowed (`EX_NOPERM`).
    Permission = 77,
    /// The configuration or the key is wrong (`EX_CONFIG`).
    Config = 78,
}

impl Exit {
    /// Returns what to do next where the failure itself does not say.
    fn hint(self) -> &'static str {
        match self {
            Exit::Ok | Exit::Attention => "freshctl status says what to do",
            Exit::NoSuchGrant => {
                "freshctl grants lists what there is; another namespace is named with --namespace"
            }
            Exit::NotServed => "freshctl why USER PROVIDER tells the cause, and what to do",
            Exit::Usage | Exit::Data => "freshctl --help says what there is",
            Exit::NoInput => "name a file that is there and that you may read",
            Exit::Unavailable => "is it running? systemctl status freshd",
            Exit::Internal => "look at what the daemon logs: journalctl -u freshd",
            Exit::CannotCreate => {
                "name a file that is not there, in a directory that you may write"
            }
            Exit::Io => "look at the disk: its room, and whether it takes writes",
            Exit::TryLater => "freshctl status says what is wrong; then try again",
            Exit::Permission => "run it as root, or as a user who may",
            Exit::Config => {
                "mend that and run it again; freshctl doctor looks at configuration and key"
            }
        }
    }
}

/// The table of exit codes as `--help` shows it.
pub const EXIT_CODES: &str = "\
Exit codes:
   0  done; for status: all is well
   1  status: something needs attention; doctor: something is wrong; import: not everything was taken;
      a verb with --all: some were refused
   4  no such grant, user or provider (404)
   5  the grant needs authorization or is paused (409)
  64  the command line is wrong
  65  the input is wrong
  66  the input, or a file of the configuration, cannot be opened
  69  the daemon cannot be reached
  70  the daemon failed, or its answer was not understood
  73  a file cannot be created, or what is there (a file, a store, a recovery key) would be lost
  74  reading or writing failed
  75  it may work later (429, 503, 507, no answer in time)
  77  not allowed (the socket's permissions, 403, or no such verb on this socket)
  78  the configuration or the key is wrong";

/// Why a command stopped.
#[derive(Debug)]
pub enum Failure {
    /// Whoever read our output hung up. Not an error.
    BrokenPipe,
    /// Something to tell.
    Told {
        /// The exit code.
        exit: Exit,
        /// What happened, without the `freshctl: ` prefix. May have several lines.
        message: String,
        /// What to do next.
        hint: Option<String>,
    },
}

impl Failure {
    /// Makes a failure without a hint.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Failure::Told {
            exit,
            message: message.into(),
            hint: None,
        }
    }

    /// Adds what to do next.
    pub fn hint(self, text: impl Into<String>) -> Self {
        match self {
            Failure::Told { exit, message, .. } => Failure::Told {
                exit,
                message,
                hint: Some(text.into()),
            },
            pipe => pipe,
        }
    }

    /// Names the command whose help says more, where the command line or the input is wrong and nothing else is said
    /// to be done.
    pub fn of(self, command: &str) -> Self {
        match self {
            Failure::Told {
                exit: Exit::Usage | Exit::Data,
                hint: None,
                ..
            } => self.hint(format!("freshctl {command} --help says what it takes")),
            other => other,
        }
    }

    /// Adds what to do next to what it says already.
    pub fn hint_also(self, text: impl Into<String>) -> Self {
        match self {
            Failure::Told {
                exit,
                message,
                hint,
            } => {
                let hints: Vec<String> = hint.into_iter().chain([text.into()]).collect();
                Failure::Told {
                    exit,
                    message,
                    hint: Some(hints.join("\n")),
                }
            }
            pipe => pipe,
        }
    }

    /// Returns what happened, in words.
    pub fn message(&self) -> String {
        match self {
            Failure::Told { message, .. } => message.clone(),
            Failure::BrokenPipe => String::new(),
        }
    }

    /// Returns what to do next, its own or what its exit code says.
    pub fn next(&self) -> &str {
        match self {
            Failure::Told {
                hint: Some(hint), ..
            } => hint,
            Failure::Told { exit, .. } => exit.hint(),
            Failure::BrokenPipe => "",
        }
    }

    /// Returns what to do next, or nothing.
    pub fn hint_text(&self) -> String {
        match self {
            Failure::Told { hint, .. } => hint.clone().unwrap_or_default(),
            Failure::BrokenPipe => String::new(),
        }
    }

    /// Makes the failure of a write to standard output or standard error.
    pub fn output(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Failure::BrokenPipe;
        }
        Failure::new(Exit::Io, format!("cannot write the output: {error}"))
    }
}
