//! `[limits]`, and the same keys in `[app.NAME]`: how much of freshd an app gets.

use std::num::NonZeroU32;

use super::file::Files;
use super::load::count;
use super::shape::QuotaShape;

/// What one app with a connection for each of a thousand requests at once needs.
const MAX_CONNECTIONS: usize = 1024;
/// More than API calls that one host makes in a second; a job that works as fast as it can is slowed to this. On two
/// cores it costs less than a tenth of one.
const MAX_REQUESTS_PER_SECOND: usize = 1000;

/// How much of freshd an app gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Connections at once.
    pub connections: usize,
    /// Requests a second; so many more wait up to a second.
    pub requests_per_second: NonZeroU32,
    /// Reading the tokens of more users than this in an hour is told; `None` is never.
    pub alarm_users_per_hour: Option<usize>,
    /// The tokens of more users than this are not given out in an hour; `None` is without limit.
    pub users_per_hour: Option<usize>,
}

impl Quota {
    /// What an app has without a word in the configuration. Nobody knows how many users an app has: no limit there.
    pub const USUAL: Quota = Quota {
        connections: MAX_CONNECTIONS,
        requests_per_second: NonZeroU32::new(MAX_REQUESTS_PER_SECOND as u32).expect("it is not 0"),
        alarm_users_per_hour: None,
        users_per_hour: None,
    };
}

/// Reads the keys of a section; what it does not say is as in `base`.
pub fn quota(files: &mut Files, section: &str, shape: &QuotaShape, base: Quota) -> Quota {
    let mut number = |key: &str, value: Option<i64>| {
        let value = value?;
        Some(count(files, &format!("{section}.{key}"), Some(value), 1, 1))
    };
    let requests = number("max-requests-per-second", shape.max_requests_per_second);
    let requests = requests.and_then(|number| NonZeroU32::new(u32::try_from(number).ok()?));
    let quota = Quota {
        connections: number("max-connections", shape.max_connections).unwrap_or(base.connections),
        requests_per_second: requests.unwrap_or(base.requests_per_second),
        alarm_users_per_hour: number("alarm-users-per-hour", shape.alarm_users_per_hour)
            .or(base.alarm_users_per_hour),
        users_per_hour: number("max-users-per-hour", shape.max_users_per_hour)
            .or(base.users_per_hour),
    };
    if let (Some(alarm), Some(most)) = (quota.alarm_users_per_hour, quota.users_per_hour)
        && alarm >= most
        && (shape.alarm_users_per_hour.is_some() || shape.max_users_per_hour.is_some())
    {
        files.fail(
            &format!("{section}.alarm-users-per-hour"),
            format!(
                "is {alarm} but must be under max-users-per-hour ({most}), or it is never reached"
            ),
        );
    }
    quota
}
