//! Reading `freshd.toml` and `conf.d/*.toml`, and remembering where each key came from.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue, ValueDeserializer};
use toml::{Spanned, Table, Value};
use url::Url;

use super::ConfigError;
use super::shape::keys_of;
use super::value::{Rule, nearest};

/// Sections that stand alone.
const SINGLE: [&str; 5] = ["daemon", "refresh", "limits", "maintenance", "outbound"];
/// Sections with a name, `[provider.NAME]`.
const NAMED: [&str; 2] = ["provider", "app"];
const SECRET_RULE: &str =
    "must be { credential = \"NAME\" } or { file = \"/PATH\" }, never the secret itself";

/// Where a key stands.
#[derive(Clone, Debug)]
struct Origin {
    /// Index into [`Files::files`].
    file: usize,
    line: usize,
}

/// The merged sections of all files, and the errors found so far.
#[derive(Debug)]
pub struct Files {
    /// What was read, in order.
    pub files: Vec<PathBuf>,
    sections: BTreeMap<String, Table>,
    origins: BTreeMap<String, Origin>,
    errors: Vec<ConfigError>,
}

impl Files {
    /// Reads `main` and `conf.d/*.toml` beside it, in name order.
    pub fn read(main: &Path) -> Files {
        let mut files = Files {
            files: vec![main.to_owned()],
            sections: BTreeMap::new(),
            origins: BTreeMap::new(),
            errors: Vec::new(),
        };
        files.add_conf_d(&main.with_file_name("conf.d"));
        for index in 0..files.files.len() {
            match std::fs::read_to_string(&files.files[index]) {
                Ok(text) => files.add_file(index, &text),
                Err(error) => {
                    let file = files.files[index].clone();
                    files.fail_file(file, "file", &error);
                }
            }
        }
        files
    }

    fn add_conf_d(&mut self, dir: &Path) {
        let listed = std::fs::read_dir(dir).and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<Result<Vec<_>, _>>()
        });
        let mut found = match listed {
            Ok(found) => found,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) => return self.fail_file(dir.to_owned(), "conf.d", &error),
        };
        found.retain(|path| {
            let name = path.file_name().unwrap_or_default().as_encoded_bytes();
            name.ends_with(b".toml") && !name.starts_with(b".")
        });
        found.sort();
        self.files.extend(found);
    }

    fn add_file(&mut self, index: usize, text: &str) {
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let span = error.span().unwrap_or(0..0);
            // The library's own message quotes the line, which may hold a secret; its bare words don't.
            self.errors.push(ConfigError {
                file: self.files[index].clone(),
                line: Some(line_of(text, &span)),
                key: key_at(text, &span),
                message: format!("is not TOML: {}", error.message()),
                unopened: false,
            });
        }
        if !errors.is_empty() {
            return;
        }
        for (key, value) in table.into_inner() {
            let name = key.get_ref().as_ref();
            let origin = Origin {
                file: index,
                line: line_of(text, &key.span()),
            };
            match value.into_inner() {
                DeValue::Table(table) if SINGLE.contains(&name) => {
                    self.add_section(name, table, origin, text);
                }
                DeValue::Table(table) if NAMED.contains(&name) => {
                    for (key, value) in table {
                        let section = format!("{name}.{}", key.get_ref());
                        let line = line_of(text, &key.span());
                        let origin = Origin {
                            line,
                            ..origin.clone()
                        };
                        match value.into_inner() {
                            DeValue::Table(table) => {
                                self.add_section(&section, table, origin, text);
                            }
                            _ => self.fail_at(&origin, &section, "must be a section".into()),
                        }
                    }
                }
                _ if SINGLE.contains(&name) || NAMED.contains(&name) => {
                    self.fail_at(&origin, name, "must be a section".into());
                }
                _ => {
                    let all = SINGLE.into_iter().chain(NAMED);
                    self.fail_at(&origin, name, unknown("section", name, all));
                }
            }
        }
    }

    fn add_section(&mut self, section: &str, table: DeTable<'_>, origin: Origin, text: &str) {
        self.origins
            .entry(section.to_owned())
            .or_insert_with(|| origin.clone());
        self.sections.entry(section.to_owned()).or_default();
        for (key, value) in table {
            let dotted = format!("{section}.{}", key.get_ref());
            let here = Origin {
                line: line_of(text, &key.span()),
                ..origin.clone()
            };
            if let Some(first) = self.origins.get(&dotted) {
                let first = format!("{}:{}", self.files[first.file].display(), first.line);
                self.fail_at(
                    &here,
                    &dotted,
                    format!("is set in {first} already; set it once"),
                );
                continue;
            }
            self.origins.insert(dotted.clone(), here.clone());
            match plain(value) {
                Some(value) => {
                    let section = self.sections.entry(section.to_owned()).or_default();
                    section.insert(key.get_ref().to_string(), value);
                }
                None => self.fail_at(&here, &dotted, "is a number too large to be read".into()),
            }
        }
    }

    /// Returns the names of all `[kind.NAME]` sections, in order.
    pub fn names(&self, kind: &str) -> Vec<String> {
        let prefix = format!("{kind}.");
        self.sections
            .keys()
            .filter_map(|key| key.strip_prefix(&prefix))
            .map(str::to_owned)
            .collect()
    }

    /// Returns a section's value before its type is checked.
    pub fn peek(&self, section: &str, key: &str) -> Option<&Value> {
        self.sections.get(section)?.get(key)
    }

    /// Puts `table` under a section: a key that the section sets itself wins.
    pub fn underlay(&mut self, section: &str, table: Table) {
        let own = self.sections.entry(section.to_owned()).or_default();
        for (key, value) in table {
            own.entry(key).or_insert(value);
        }
    }

    /// Takes a section out as `T`. Keys unknown or of a wrong type are reported, each, and left out.
    pub fn section<T: DeserializeOwned + Default>(&mut self, section: &str) -> T {
        let mut good = Table::new();
        for (key, value) in self.sections.remove(section).unwrap_or_default() {
            let dotted = format!("{section}.{key}");
            let known = keys_of::<T>();
            if !known.contains(&key.as_str()) {
                self.fail(&dotted, unknown("key", &key, known.iter().copied()));
                continue;
            }
            let alone = Table::from_iter([(key.clone(), value.clone())]);
            match alone.try_into::<T>() {
                Ok(_) => {
                    good.insert(key, value);
                }
                Err(error) => self.fail(&dotted, wrong_type(&key, &value, error.message())),
            }
        }
        good.try_into().unwrap_or_default()
    }

    /// Records that `key` (dotted) is wrong.
    pub fn fail(&mut self, key: &str, message: String) {
        let mut at = key;
        let origin = loop {
            match (self.origins.get(at), at.rsplit_once('.')) {
                (Some(origin), _) => break Some(origin.clone()),
                (None, Some((parent, _))) => at = parent,
                (None, None) => break None,
            }
        };
        match origin {
            Some(origin) => self.fail_at(&origin, key, message),
            None => self.errors.push(ConfigError {
                file: self.files[0].clone(),
                line: None,
                key: key.into(),
                message,
                unopened: false,
            }),
        }
    }

    /// Records that `key` is missing, unless it is there and was found wrong already.
    pub fn fail_missing(&mut self, key: &str, message: &str) {
        if !self.failed(key) {
            self.fail(key, message.into());
        }
    }

    /// Returns whether `key` was found wrong.
    pub fn failed(&self, key: &str) -> bool {
        self.errors.iter().any(|error| error.key == key)
    }

    fn fail_at(&mut self, origin: &Origin, key: &str, message: String) {
        let file = self.files[origin.file].clone();
        self.errors.push(ConfigError {
            file,
            line: Some(origin.line),
            key: key.into(),
            message,
            unopened: false,
        });
    }

    fn fail_file(&mut self, file: PathBuf, key: &str, error: &std::io::Error) {
        self.errors.push(ConfigError {
            file,
            line: None,
            key: key.into(),
            message: format!("cannot be read: {}", io_words(error)),
            unopened: error.kind() != std::io::ErrorKind::InvalidData,
        });
    }

    /// Reads `text` by `parse`; a broken rule is recorded with the value.
    pub fn parse<T>(
        &mut self,
        key: &str,
        text: &str,
        parse: impl FnOnce(&str) -> Result<T, Rule>,
    ) -> Option<T> {
        parse(text)
            .map_err(|rule| self.fail(key, format!("is {} but {rule}", show(text))))
            .ok()
    }

    /// Returns the files read, or every error found, in the order of the files.
    pub fn finish(mut self) -> Result<Vec<PathBuf>, Vec<ConfigError>> {
        if self.errors.is_empty() {
            return Ok(self.files);
        }
        let files = self.files;
        self.errors.sort_by_key(|error| {
            (
                files.iter().position(|file| *file == error.file),
                error.line,
            )
        });
        Err(self.errors)
    }
}

/// Shows a value in quotes, its control characters escaped, cut where it is long.
pub fn show(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((cut, _)) => format!("{:?}…", &text[..cut]),
        None => format!("{text:?}"),
    }
}

/// Shows a URL without user name, password and query. What an `@` behind the host tells to be a password that was not
/// escaped, or has no host, is not shown at all.
pub fn show_url(url: &Url) -> String {
    let behind = [Some(url.path()), url.query(), url.fragment()];
    if !url.has_host() || behind.into_iter().flatten().any(|part| part.contains('@')) {
        return "not shown, for it may hold a password,".to_owned();
    }
    let mut shown = url.clone();
    let _ = shown.set_username("");
    let _ = shown.set_password(None);
    shown.set_query(None);
    shown.set_fragment(None);
    show(shown.as_str())
}

/// Says what went wrong without the path, which the error names already.
pub fn io_words(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file",
        std::io::ErrorKind::PermissionDenied => "permission denied",
        std::io::ErrorKind::IsADirectory => "it is a directory",
        std::io::ErrorKind::InvalidData => "it is not UTF-8 text",
        _ => "input/output error",
    }
}

fn unknown<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    match nearest(name, known.clone()) {
        Some(near) => format!("is not a {what}; did you mean {near}?"),
        None => format!(
            "is not a {what}; there are {}",
            known.collect::<Vec<_>>().join(", ")
        ),
    }
}

/// Says what a value is and must be. Serde's own message shows the value, which may be a secret; what it
/// expected comes last and is ours.
fn wrong_type(key: &str, value: &Value, message: &str) -> String {
    if key == "client-secret" {
        return SECRET_RULE.into();
    }
    let expected = match message
        .rsplit_once(", expected ")
        .map_or("of another type", |(_, e)| e.trim())
    {
        "i64" => "a whole number",
        "a sequence" => "a list",
        "a boolean" => "true or false",
        expected => expected,
    };
    match value {
        Value::Table(_) => format!("is a table but must be {expected}"),
        Value::Array(_) => format!("is a list but must be {expected}"),
        Value::String(text) => format!("is {} but must be {expected}", show(text)),
        other => format!("is {other} but must be {expected}"),
    }
}

fn plain(value: Spanned<DeValue<'_>>) -> Option<Value> {
    Value::deserialize(ValueDeserializer::from(value)).ok()
}

fn line_of(text: &str, span: &Range<usize>) -> usize {
    1 + text
        .bytes()
        .take(span.start)
        .filter(|byte| *byte == b'\n')
        .count()
}

/// Returns the dotted key of the line at `span`, as far as it can be made out in broken TOML.
fn key_at(text: &str, span: &Range<usize>) -> String {
    let lines: Vec<&str> = text.lines().take(line_of(text, span)).collect();
    let bare = |key: &str| {
        !key.is_empty()
            && key
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    let section = lines
        .iter()
        .rev()
        .find_map(|line| line.trim().strip_prefix('[')?.split(']').next())
        .map(str::trim)
        .filter(|section| bare(section));
    let key = lines
        .last()
        .and_then(|line| line.split_once('='))
        .map(|(key, _)| key.trim());
    let parts: Vec<&str> = section
        .into_iter()
        .chain(key.filter(|key| bare(key)))
        .collect();
    if parts.is_empty() {
        "line".into()
    } else {
        parts.join(".")
    }
}
