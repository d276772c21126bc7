//! The man pages and shell completions, made from what the program itself is made of.
//!
//! Commands and options come from their clap definitions, the keys of freshd.toml(5) from `config/freshd.toml`, which
//! a test proves to show every key, and freshd(8)'s log lines from README.md's table. The hidden `freshd manual`
//! writes them; the package's build calls it.

use std::io;
use std::path::Path;

use clap::Command;
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};

const README: &str = include_str!("../README.md");
const ANNOTATED: &str = include_str!("../config/freshd.toml");

const FILES: [(&str, &str); 8] = [
    (
        "/etc/freshd/freshd.toml",
        "the configuration; see freshd.toml(5)",
    ),
    ("/etc/freshd/conf.d/*.toml", "more of it, in name order"),
    (
        "/etc/freshd/key",
        "the key that opens the grants, 32 bytes in base64; root's alone. Keep a copy elsewhere",
    ),
    (
        "/var/lib/freshd",
        "the store: database, keyring, spill file",
    ),
    (
        "/run/freshd/shared/freshd.sock",
        "the shared socket, for apps",
    ),
    (
        "/run/freshd/admin/freshd.sock",
        "the admin socket, for freshctl(1) and members of freshd-admin",
    ),
    (
        "/run/freshd/app/NAME/freshd.sock",
        "an app's own socket, where its rule has one",
    ),
    (
        "/usr/share/doc/freshd/README.md",
        "everything else: promises, routes, examples",
    ),
];

/// Writes freshd(8), freshctl(1), freshd.toml(5) and completions for bash, zsh and fish into `dir`, which is made
/// if it is missing. `freshd` is the daemon's command line.
///
/// # Errors
///
/// What the file system says.
pub fn write(dir: &Path, freshd: Command) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let mut freshctl = crate::ctl::command();
    freshctl.build();
    std::fs::write(dir.join("freshd.8"), daemon_page(&freshd)?)?;
    std::fs::write(dir.join("freshctl.1"), command_page(&freshctl)?)?;
    std::fs::write(dir.join("freshd.toml.5"), config_page()?)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut freshctl.clone(), "freshctl", dir)?;
    }
    Ok(())
}

fn daemon_page(freshd: &Command) -> io::Result<Vec<u8>> {
    let mut page = beginning(freshd, "8")?;
    let mut roff = Roff::new();
    roff.control("SH", ["SIGNALS AND EXIT CODES"]);
    lines(&mut roff, &after_help(freshd));
    let log = section("## The log");
    roff.control("SH", ["LOG"]);
    for paragraph in prose(log) {
        roff.text([roman(paragraph)]);
        roff.control("PP", []);
    }
    for row in rows(log) {
        let [event, level, fields, meaning] = row.as_slice() else {
            continue;
        };
        roff.control("TP", []);
        let about = if fields.is_empty() {
            format!(" ({level})")
        } else {
            format!(" ({level}: {fields})")
        };
        roff.text([bold(event), roman(about)]);
        roff.text([roman(meaning)]);
    }
    roff.control("SH", ["FILES"]);
    for (path, what) in FILES {
        roff.control("TP", []);
        roff.text([italic(path)]);
        roff.text([roman(what)]);
    }
    see_also(
        &mut roff,
        "freshctl(1), freshd.toml(5), systemd.exec(5), systemd-creds(1)",
    );
    roff.to_writer(&mut page)?;
    Ok(page)
}

fn command_page(freshctl: &Command) -> io::Result<Vec<u8>> {
    let mut page = beginning(freshctl, "1")?;
    let mut roff = Roff::new();
    roff.control("SH", ["COMMANDS"]);
    commands(&mut roff, freshctl);
    roff.control("SH", ["EXIT CODES"]);
    let codes = after_help(freshctl);
    lines(&mut roff, codes.trim_start_matches("Exit codes:\n"));
    see_also(&mut roff, "freshd(8), freshd.toml(5)");
    roff.to_writer(&mut page)?;
    Ok(page)
}

/// Title, name, synopsis, description and options.
fn beginning(command: &Command, section: &str) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    let name = command.get_name().to_owned();
    let source = format!("freshd {}", env!("CARGO_PKG_VERSION"));
    // Global options are described once, here, and not with each command.
    let man = Man::new(command.clone().disable_help_subcommand(true))
        .title(name.to_uppercase())
        .section(section)
        .source(source)
        .date("");
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    Ok(page)
}

fn commands(roff: &mut Roff, of: &Command) {
    for command in of
        .get_subcommands()
        .filter(|c| !c.is_hide_set() && c.get_name() != "help")
    {
        if command.has_subcommands() {
            commands(roff, command);
            continue;
        }
        let usage = command.clone().render_usage().to_string();
        let usage = usage
            .trim_start_matches("Usage: ")
            .trim_start_matches("freshctl ");
        roff.control("SS", [usage]);
        if let Some(about) = command.get_long_about().or(command.get_about()) {
            roff.text([roman(format!("{about}."))]);
        }
        let arguments = command.get_arguments();
        for argument in
            arguments.filter(|a| !a.is_hide_set() && !a.is_global_set() && a.get_id() != "help")
        {
            let Some(help) = argument.get_help() else {
                continue;
            };
            roff.control("TP", []);
            let shown = argument.to_string();
            let shown = shown.split(' ').next().unwrap_or_default().to_owned();
            let value = argument
                .get_value_names()
                .filter(|_| !argument.is_positional());
            let value = match value {
                Some([name, ..]) if argument.get_action().takes_values() => format!(" {name}"),
                _ => String::new(),
            };
            roff.text([bold(shown), italic(value)]);
            roff.text([roman(help.to_string())]);
        }
        let after = after_help(command);
        if !after.is_empty() {
            roff.control("PP", []);
            roff.text([roman(after)]);
        }
    }
}

/// What `config/freshd.toml` says, key by key.
fn config_page() -> io::Result<Vec<u8>> {
    let mut roff = Roff::new();
    let source = format!("freshd {}", env!("CARGO_PKG_VERSION"));
    roff.control("TH", ["FRESHD.TOML", "5", "", &source]);
    roff.control("SH", ["NAME"]);
    roff.text([roman("freshd.toml - the configuration of freshd(8)")]);
    roff.control("SH", ["DESCRIPTION"]);
    let (header, body) = ANNOTATED.split_once("\n\n").unwrap_or(("", ANNOTATED));
    // The first line is about the marks of the annotated file itself.
    let header: Vec<&str> = header
        .lines()
        .skip(1)
        .map(|l| l.trim_start_matches(['#', ' ']))
        .collect();
    roff.text([roman(header.join(" ").trim().to_owned())]);
    roff.control("PP", []);
    roff.text([roman(
        "Each key is followed by its default or an example. Unknown keys are refused.",
    )]);
    for line in body.lines().filter(|line| !line.trim().is_empty()) {
        let (code, comment) = line
            .trim_start_matches('#')
            .split_once(" # ")
            .unwrap_or((line, ""));
        let (code, comment) = (code.trim_start_matches('#').trim(), comment.trim());
        if let Some(section) = code.strip_prefix('[') {
            let name = section.trim_end_matches(']');
            roff.control("SH", [format!("[{name}]").as_str()]);
            if !comment.is_empty() {
                roff.text([roman(comment)]);
            }
        } else if let Some((key, value)) = code.split_once(" = ") {
            roff.control("TP", []);
            roff.text([bold(key), roman(" = "), roman(value.trim())]);
            roff.text([roman(comment)]);
        }
    }
    roff.control("SH", ["FILES"]);
    roff.text([roman(
        "/usr/share/doc/freshd/examples/freshd.toml has all of this as one file.",
    )]);
    see_also(&mut roff, "freshd(8), freshctl(1)");
    let mut page = Vec::new();
    roff.to_writer(&mut page)?;
    Ok(page)
}

fn see_also(roff: &mut Roff, pages: &str) {
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(pages)]);
}

fn after_help(command: &Command) -> String {
    command
        .get_after_help()
        .map(ToString::to_string)
        .unwrap_or_default()
}

/// Text whose line ends stay.
fn lines(roff: &mut Roff, text: &str) {
    roff.control("nf", []);
    for line in text.lines() {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
}

/// A section of README.md, up to the next heading.
fn section(heading: &str) -> &'static str {
    let rest = README
        .split_once(&format!("\n{heading}\n"))
        .map_or("", |(_, rest)| rest);
    rest.split("\n## ").next().unwrap_or_default()
}

/// A section's paragraphs that are no tables, without marks.
fn prose(section: &str) -> impl Iterator<Item = String> {
    let paragraphs = section.split("\n\n").map(str::trim);
    let text = paragraphs.filter(|text| !text.is_empty() && !text.starts_with(['|', '`']));
    text.map(|text| plain(&text.replace('\n', " ")))
}

/// The rows of a section's tables, without their heads.
fn rows(section: &str) -> impl Iterator<Item = Vec<String>> {
    let lines = section.lines().filter(|line| line.starts_with('|'));
    let rows = lines.map(|line| {
        line.trim_matches('|')
            .split('|')
            .map(|cell| plain(cell.trim()))
            .collect()
    });
    rows.filter(|row: &Vec<String>| row[0] != "event" && !row[0].starts_with("---"))
}

fn plain(text: &str) -> String {
    text.replace("**", "").replace('`', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(page: io::Result<Vec<u8>>) -> String {
        // As a reader of the page sees hyphens.
        String::from_utf8(page.unwrap())
            .unwrap()
            .replace("\\-", "-")
    }

    #[test]
    fn freshctls_page_has_every_command_and_option() {
        let mut command = crate::ctl::command();
        command.build();
        let page = text(command_page(&command));
        for sub in command
            .get_subcommands()
            .filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
        {
            assert!(
                page.contains(&format!(".SS \"{}", sub.get_name()))
                    || page.contains(&format!(".SS {}", sub.get_name())),
                "{}",
                sub.get_name()
            );
            for argument in sub.get_arguments().filter_map(|a| a.get_long()) {
                assert!(page.contains(&format!("--{argument}")), "--{argument}");
            }
        }
        assert!(
            page.contains("\n  69  the daemon cannot be reached"),
            "{page}"
        );
    }

    #[test]
    fn the_configurations_page_has_every_section_and_key_of_the_annotated_file() {
        let page = text(config_page());
        for line in ANNOTATED.lines().skip_while(|line| line.starts_with("# ")) {
            let line = line.trim_start_matches('#');
            if let Some((key, _)) = line.split_once(" = ").filter(|(key, _)| !key.contains(' ')) {
                assert!(page.contains(&format!("\n\\fB{key}\\fR = ")), "{key}");
            } else if let Some(section) = line.strip_prefix('[') {
                let section = section.split(']').next().unwrap();
                assert!(page.contains(&format!(".SH [{section}]")), "{section}");
            }
        }
        assert!(!page.contains("\\fBRead"), "{page}");
    }

    #[test]
    fn the_daemons_page_has_the_log_lines_of_the_readme() {
        let page = text(daemon_page(
            &Command::new("freshd").about("x").after_help("y"),
        ));
        for event in [
            "needs-authorization",
            "not-started",
            "held",
            "maintenance-failed",
        ] {
            assert!(page.contains(&format!("\\fB{event}\\fR (")), "{event}");
        }
        assert!(
            rows(section("## The log")).all(|row| row.len() == 4),
            "a `|` in a cell splits it"
        );
        assert!(!page.contains('`') && page.contains(".SH LOG"), "{page}");
    }
}
