//! How single values are written: lengths of time, rates, sizes, names.
//!
//! Each function returns the rule that was broken, as the end of a sentence that begins with the key and
//! its value: `… but must be …`.

use std::net::SocketAddr;
use std::time::Duration;

use crate::refresh::grant::{NAME_RULE, is_name};
use crate::refresh::time::UnixTime;

/// What a function here found wrong: the rule, in words.
pub type Rule = String;

const DURATION_RULE: &str =
    "must be numbers with units ms, s, m, h, d or w, such as \"90s\", \"5m\" or \"1h30m\"";
/// No length in a configuration is longer, so no sum of them can overflow.
const LONGEST: Duration = Duration::from_secs(3650 * 86_400);

/// Reads a length of time: `500ms`, `90s`, `1h30m`. Each unit once, the longer first.
pub fn duration(text: &str) -> Result<Duration, Rule> {
    const UNITS: [(&str, u64); 6] = [
        ("w", 7 * 86_400_000),
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1000),
        ("ms", 1),
    ];
    let mut millis: u64 = 0;
    let mut shorter_than = usize::MAX;
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(DURATION_RULE.into());
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let letters = tail
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let place = UNITS
            .iter()
            .position(|(name, _)| *name == unit)
            .ok_or(DURATION_RULE)?;
        if shorter_than != usize::MAX && place <= shorter_than {
            return Err(DURATION_RULE.into());
        }
        shorter_than = place;
        let number: u64 = number.parse().map_err(|_| DURATION_RULE)?;
        millis = millis.saturating_add(number.saturating_mul(UNITS[place].1));
        rest = tail;
    }
    let length = Duration::from_millis(millis);
    if length > LONGEST {
        Err("must be at most 3650d".into())
    } else {
        Ok(length)
    }
}

/// Reads a length of time more than zero: `500ms`, `90s`, `1h30m`.
///
/// # Errors
/// The rule that was broken, as the end of a sentence: `must be …`.
pub fn positive_duration(text: &str) -> Result<Duration, Rule> {
    match duration(text)? {
        Duration::ZERO => Err("must be more than zero".into()),
        length => Ok(length),
    }
}

/// Writes a length of time as [`duration`] reads it.
pub fn show_duration(length: Duration) -> String {
    let mut millis = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, size) in [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1000),
        ("ms", 1),
    ] {
        if millis >= size {
            text.push_str(&format!("{}{unit}", millis / size));
            millis %= size;
        }
    }
    if text.is_empty() { "0s".into() } else { text }
}

/// Reads a rate as requests per second: `50/s`, `100/m`, `1000/h`, `50000/d`.
pub fn rate(text: &str) -> Result<f64, Rule> {
    const RULE: &str =
        "must be a whole number above 0 with /s, /m, /h or /d, such as \"50/s\" or \"100/m\"";
    let (number, unit) = text.trim().split_once('/').ok_or(RULE)?;
    let seconds = match unit.trim() {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(RULE.into()),
    };
    match number.trim().parse::<u32>() {
        Ok(number) if number > 0 => Ok(f64::from(number) / f64::from(seconds)),
        _ => Err(RULE.into()),
    }
}

/// Reads a size in bytes: `16MiB`, `512KiB`, `1GiB`; `off` is 0.
pub fn size(text: &str) -> Result<usize, Rule> {
    const RULE: &str =
        "must be \"off\" or a whole number above 0 with KiB, MiB or GiB, such as \"16MiB\"";
    if text.trim() == "off" {
        return Ok(0);
    }
    let split = text
        .trim()
        .find(|c: char| !c.is_ascii_digit())
        .ok_or(RULE)?;
    let (number, unit) = text.trim().split_at(split);
    let factor: usize = match unit.trim() {
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(RULE.into()),
    };
    let number: usize = number.parse().map_err(|_| RULE)?;
    match number.checked_mul(factor) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => Err(RULE.into()),
    }
}

/// Checks the name of a provider, app or namespace.
pub fn name(text: &str) -> Result<(), Rule> {
    is_name(text).then_some(()).ok_or_else(|| NAME_RULE.into())
}

/// Reads a literal loopback address with its port: `127.0.0.1:9464`. Port 0 is any free one, which the log names.
pub fn loopback(text: &str) -> Result<SocketAddr, Rule> {
    let address = text.parse::<SocketAddr>().ok();
    address
        .filter(|address| address.ip().is_loopback())
        .ok_or_else(|| "must be a loopback address and a port, such as \"127.0.0.1:9464\"".into())
}

/// Checks one scope (RFC 6749 §3.3: printable, no space, no quote, no backslash).
pub fn scope(text: &str) -> Result<(), Rule> {
    let allowed = |b: u8| (0x21..=0x7e).contains(&b) && b != b'"' && b != b'\\';
    if !text.is_empty() && text.bytes().all(allowed) {
        Ok(())
    } else {
        Err("must be scopes of RFC 6749: one each, not empty, printable, without spaces".into())
    }
}

/// Reads a cron expression.
fn parse_cron(text: &str) -> Result<croner::Cron, croner::errors::CronError> {
    croner::parser::CronParser::builder()
        .seconds(croner::parser::Seconds::Required)
        .build()
        .parse(text)
}

/// Returns the first moment after `after` that a cron expression names, in UTC; `None` where there is none.
pub fn next_of_cron(text: &str, after: UnixTime) -> Option<UnixTime> {
    // The parser would keep the milliseconds.
    let after = chrono::DateTime::from_timestamp(after.as_millis().div_euclid(1000), 0)?;
    let next = parse_cron(text).ok()?.find_next_occurrence(&after, false);
    Some(UnixTime::from_millis(next.ok()?.timestamp_millis()))
}

/// Checks a cron expression.
pub fn cron(text: &str) -> Result<(), Rule> {
    parse_cron(text)
        .map(|_| ())
        .map_err(|_| {
            "must be \"off\" or a cron expression of six fields, seconds first, such as \"0 30 3 * * *\"".into()
        })
}

/// Returns the one of `candidates` that is spelled most like `text`, if any is close.
pub fn nearest<'a>(text: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(text, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_units_only() {
        for (text, millis) in [
            ("500ms", 500),
            ("90s", 90_000),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("3d", 259_200_000),
            ("1w2d3h4m5s6ms", 788_645_006),
            ("0s", 0),
            (" 5m ", 300_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            " ",
            "5",
            "m",
            "5 m",
            "-5m",
            "5.5m",
            "5M",
            "30m1h",
            "5m5m",
            "5mm",
            "5m3",
            "٥m",
            "99999999999999999999s",
        ] {
            assert_eq!(duration(text), Err(DURATION_RULE.into()), "{text}");
        }
        assert_eq!(duration("3651d"), Err("must be at most 3650d".into()));
        assert_eq!(
            duration("18446744073709551615w"),
            Err("must be at most 3650d".into())
        );
        assert!(positive_duration("0ms").is_err());
    }

    #[test]
    fn a_shown_duration_reads_back() {
        for millis in [0, 1, 1500, 90_000, 5_400_000, 259_200_000, 90_061_001] {
            let length = Duration::from_millis(millis);
            assert_eq!(duration(&show_duration(length)), Ok(length));
        }
        assert_eq!(show_duration(Duration::from_secs(5400)), "1h30m");
    }

    #[test]
    fn rates_and_sizes_are_read_with_units_only() {
        assert_eq!(rate("50/s"), Ok(50.0));
        assert_eq!(rate("120/m"), Ok(2.0));
        assert_eq!(rate("36/h"), Ok(0.01));
        for text in ["", "50", "0/s", "-1/s", "50/y", "/s", "5.5/s", "50/s/s"] {
            assert!(rate(text).is_err(), "{text}");
        }
        assert_eq!(size("16MiB"), Ok(16 << 20));
        assert_eq!(size("off"), Ok(0));
        for text in [
            "",
            "16",
            "0MiB",
            "16MB",
            "MiB",
            "-1MiB",
            "99999999999999999GiB",
        ] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_plain() {
        for text in ["a", "0", "hub-spot_2.eu", &"a".repeat(64)] {
            assert_eq!(name(text), Ok(()), "{text}");
        }
        for text in [
            "",
            "-a",
            ".a",
            "A",
            "a b",
            "a:b",
            "a/b",
            "ä",
            &"a".repeat(65),
        ] {
            assert!(name(text).is_err(), "{text}");
        }
    }

    #[test]
    fn cron_expressions_have_six_fields() {
        assert_eq!(cron("0 30 3 * * *"), Ok(()));
        for text in [
            "",
            "30 3 * * *",
            "every day",
            "0 61 3 * * *",
            "@daily please",
        ] {
            assert!(cron(text).is_err(), "{text}");
        }
    }
}
