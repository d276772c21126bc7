//! The key-encryption key: made, written and read, each under strict rules.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand::TryRng;
use rand::rngs::SysRng;
use zeroize::Zeroizing;

use super::guarded::Guarded;

/// The length of every key, in bytes.
pub(super) const KEY_LEN: usize = 32;
/// A key as text: 32 bytes in padded base64.
const TEXT_LEN: usize = 44;
/// The name of the systemd credential that holds the key.
const CREDENTIAL: &str = "freshd.key";
/// What that credential is set to where its file is missing.
const ABSENT: &[u8] = b"absent";

/// The 32-byte key-encryption key; zeroized on drop, redacted in `Debug`.
///
/// As a file it is one line: the 32 bytes in standard, padded base64 (44
/// characters), with or without a newline at the end. There is no other form.
#[derive(Clone)]
pub struct Kek(Guarded);

/// Why a key could not be read or written. Names the file and the rule, never a byte of the key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// There is no such file.
    #[error("key file {path} does not exist", path = path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file could not be opened or read.
    #[error("key file {path} could not be read", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a symbolic link.
    #[error("key file {path} is a symbolic link; name the file itself", path = path.display())]
    Symlink {
        /// The file.
        path: PathBuf,
    },
    /// It is a directory, a pipe or a device.
    #[error("key file {path} is not a regular file", path = path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// Others may read or change it, or it is executable.
    #[error(
        "key file {path} has mode {mode:04o} but must have 0400 or 0600; `chmod 0600` it; if others could read it, `freshctl key change-kek` puts another one in its place",
        path = path.display()
    )]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It belongs to somebody else.
    #[error(
        "key file {path} belongs to uid {uid} but must belong to root or to the uid that freshd runs as",
        path = path.display()
    )]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// It holds something else than a key.
    #[error(
        "key file {path} must hold one line of 44 base64 characters (32 bytes), as `freshctl key generate` writes it",
        path = path.display()
    )]
    Content {
        /// The file.
        path: PathBuf,
    },
    /// A key is never overwritten.
    #[error("{path} already exists; a key is never overwritten", path = path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file could not be written.
    #[error("key file {path} could not be written", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Kek {
    /// Makes a new random key from the system's random source.
    pub fn generate() -> Kek {
        let mut key = Guarded::zeroed();
        SysRng
            .try_fill_bytes(&mut *key)
            .expect("the system's random source works");
        Kek(key)
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// The file must be a regular one, not a symbolic link, of mode 0400 or
    /// 0600, owned by root or by our effective uid.
    pub fn read_file(path: &Path) -> Result<Kek, KeyError> {
        Kek::read_file_of(path, rustix::process::geteuid().as_raw())
    }

    /// The same for another uid than ours: the one that freshd runs as, where root looks.
    ///
    /// # Errors
    /// As [`Kek::read_file`].
    pub fn read_file_of(path: &Path, uid: u32) -> Result<Kek, KeyError> {
        let (file, meta) = open_regular(path)?;
        let mode = meta.mode() & 0o7777;
        if mode != 0o400 && mode != 0o600 {
            return Err(KeyError::Mode {
                path: path.into(),
                mode,
            });
        }
        if meta.uid() != 0 && meta.uid() != uid {
            return Err(KeyError::Owner {
                path: path.into(),
                uid: meta.uid(),
            });
        }
        read_text(file, path)
    }

    /// Reads `freshd.key` in a systemd credentials directory (`$CREDENTIALS_DIRECTORY`);
    /// `None` if that credential is not there, or is the word "absent".
    ///
    /// The unit sets it to that word where the file that it should come from is missing: without, systemd would fail
    /// with a line that names no file, before we could say which one it is.
    ///
    /// Mode and owner are systemd's business: it may grant us the file by an access
    /// control list, which shows up as group permissions.
    ///
    /// # Errors
    /// The credential must be a regular file that holds a key.
    pub fn from_systemd_credential(dir: &Path) -> Result<Option<Kek>, KeyError> {
        let path = dir.join(CREDENTIAL);
        match open_regular(&path) {
            Ok(_) if is_absent(&path) => Ok(None),
            Ok((file, _)) => read_text(file, &path).map(Some),
            Err(KeyError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the key to a new file of mode 0600, on disk when this returns.
    ///
    /// # Errors
    /// An existing file is never overwritten. A file that could not be written whole is removed.
    pub fn write_new(&self, path: &Path) -> Result<(), KeyError> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path);
        let file = file.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => KeyError::Exists { path: path.into() },
            _ => KeyError::Write {
                path: path.into(),
                source,
            },
        })?;
        self.write_text(file, path).map_err(|source| {
            // The half-written file is ours, and useless; the first error is the one to report.
            let _ = std::fs::remove_file(path);
            KeyError::Write {
                path: path.into(),
                source,
            }
        })
    }

    fn write_text(&self, mut file: File, path: &Path) -> io::Result<()> {
        let mut text = Zeroizing::new([b'\n'; TEXT_LEN + 1]);
        STANDARD
            .encode_slice(self.bytes(), &mut text[..TEXT_LEN])
            .expect("32 bytes are 44 base64 characters");
        file.write_all(&*text)?;
        file.sync_all()?;
        sync_parent(path)
    }

    pub(super) fn from_bytes(key: &[u8; KEY_LEN]) -> Kek {
        Kek(Guarded::of(key))
    }

    pub(super) fn bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }
}

impl fmt::Debug for Kek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kek(redacted)")
    }
}

/// Makes a rename or a new name in `path`'s directory durable.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)?.sync_all()
}

fn open_regular(path: &Path) -> Result<(File, std::fs::Metadata), KeyError> {
    // O_NONBLOCK: opening a named pipe must not wait for its other end.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(|source| match source.raw_os_error() {
            Some(libc::ELOOP) => KeyError::Symlink { path: path.into() },
            Some(libc::ENOENT) => KeyError::Missing { path: path.into() },
            _ => KeyError::Read {
                path: path.into(),
                source,
            },
        })?;
    let meta = file.metadata().map_err(|source| KeyError::Read {
        path: path.into(),
        source,
    })?;
    if !meta.is_file() {
        return Err(KeyError::NotAFile { path: path.into() });
    }
    Ok((file, meta))
}

/// Whether the file holds [`ABSENT`]; a key, which is longer, is not read for that.
fn is_absent(path: &Path) -> bool {
    let short = std::fs::metadata(path).is_ok_and(|about| about.len() == ABSENT.len() as u64);
    short && std::fs::read(path).is_ok_and(|content| content == ABSENT)
}

fn read_text(mut file: File, path: &Path) -> Result<Kek, KeyError> {
    // One byte more than a key and its newline, to see that there is no more.
    let mut text = Zeroizing::new([0; TEXT_LEN + 2]);
    let mut len = 0;
    while len < text.len() {
        let read = file.read(&mut text[len..]);
        match read.map_err(|source| KeyError::Read {
            path: path.into(),
            source,
        })? {
            0 => break,
            read => len += read,
        }
    }
    let content = || KeyError::Content { path: path.into() };
    let line = text[..len].strip_suffix(b"\n").unwrap_or(&text[..len]);
    let mut key = Guarded::zeroed();
    match STANDARD.decode_slice(line, &mut *key) {
        Ok(KEY_LEN) => Ok(Kek(key)),
        _ => Err(content()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn chmod(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_written_key_is_private_and_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let key = Kek::generate();
        key.write_new(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o600);
        assert_eq!(Kek::read_file(&path).unwrap().bytes(), key.bytes());
        chmod(&path, 0o400);
        assert_eq!(Kek::read_file(&path).unwrap().bytes(), key.bytes());
        assert_ne!(Kek::generate().bytes(), key.bytes());
    }

    #[test]
    fn a_key_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        Kek::generate().write_new(&path).unwrap();
        let before = std::fs::read(&path).unwrap();
        let error = Kek::generate().write_new(&path).unwrap_err();
        assert!(matches!(error, KeyError::Exists { .. }));
        assert_eq!(std::fs::read(&path).unwrap(), before);
        let error = Kek::generate()
            .write_new(&dir.path().join("no/key"))
            .unwrap_err();
        assert!(matches!(error, KeyError::Write { .. }));
    }

    #[test]
    fn a_key_file_that_others_could_touch_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        Kek::generate().write_new(&path).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o700, 0o4600] {
            chmod(&path, mode);
            let error = Kek::read_file(&path).unwrap_err();
            assert!(
                matches!(error, KeyError::Mode { mode: m, .. } if m == mode),
                "{error}"
            );
            assert!(
                error.to_string().contains(&format!("{mode:04o}")),
                "{error}"
            );
        }
        if rustix::process::geteuid().is_root() {
            chmod(&path, 0o600);
            std::os::unix::fs::chown(&path, Some(65_533), None).unwrap();
            assert!(matches!(
                Kek::read_file(&path),
                Err(KeyError::Owner { uid: 65_533, .. })
            ));
        }
    }

    #[test]
    fn links_pipes_directories_and_absent_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        assert!(matches!(
            Kek::read_file(&path),
            Err(KeyError::Missing { .. })
        ));
        Kek::generate().write_new(&path).unwrap();
        let link = dir.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(matches!(
            Kek::read_file(&link),
            Err(KeyError::Symlink { .. })
        ));
        let folder = dir.path().join("folder");
        std::fs::create_dir(&folder).unwrap();
        assert!(matches!(
            Kek::read_file(&folder),
            Err(KeyError::NotAFile { .. })
        ));
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(matches!(
            Kek::read_file(&pipe),
            Err(KeyError::NotAFile { .. })
        ));
    }

    #[test]
    fn only_one_line_of_base64_is_a_key_and_errors_never_quote_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let good = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY=";
        let cases = [
            (good.to_string(), true),
            (format!("{good}\n"), true),
            (format!("{good}\n\n"), false),
            (format!("{good}{good}"), false),
            (good[..40].to_string(), false),
            (String::new(), false),
            ("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef".to_string(), false),
        ];
        for (text, taken) in cases {
            std::fs::write(&path, &text).unwrap();
            chmod(&path, 0o600);
            match Kek::read_file(&path) {
                Ok(key) => {
                    assert!(taken, "{text:?}");
                    assert_eq!(key.bytes(), b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef");
                    assert_eq!(format!("{key:?}"), "Kek(redacted)");
                }
                Err(error) => {
                    assert!(!taken, "{text:?}");
                    assert!(matches!(error, KeyError::Content { .. }));
                    let shown = format!("{error} {error:?}");
                    assert!(
                        !shown.contains("QUJD") && !shown.contains("ABCD"),
                        "{shown}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_systemd_credential_is_used_if_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Kek::from_systemd_credential(dir.path()).unwrap().is_none());
        let path = dir.path().join("freshd.key");
        let key = Kek::generate();
        key.write_new(&path).unwrap();
        chmod(&path, 0o440);
        let read = Kek::from_systemd_credential(dir.path()).unwrap().unwrap();
        assert_eq!(read.bytes(), key.bytes());
        std::fs::write(&path, "nonsense").unwrap();
        assert!(Kek::from_systemd_credential(dir.path()).is_err());
        std::fs::write(&path, "absent").unwrap();
        assert!(Kek::from_systemd_credential(dir.path()).unwrap().is_none());
    }
}
